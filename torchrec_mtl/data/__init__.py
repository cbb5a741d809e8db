"""Prepared data sets: schema, reader, writer and batches, and the encoders of raw columns."""

import torchrec_mtl.stack as _stack  # noqa: F401  (refuses what does not go together)
from torchrec_mtl.data.batch_checks import check_batch
from torchrec_mtl.data.batches import MultiTaskBatch
from torchrec_mtl.data.loader import BatchLoader
from torchrec_mtl.data.reader import read_split
from torchrec_mtl.data.rounding import log_round
from torchrec_mtl.data.schema import SPLITS, Field, Schema
from torchrec_mtl.data.split import Split
from torchrec_mtl.data.stream_files import load_schema
from torchrec_mtl.data.stream_loader import StreamLoader
from torchrec_mtl.data.stream_reader import StreamedSplit, stream_split
from torchrec_mtl.data.unknown_ids import UnknownIds
from torchrec_mtl.data.writer import build_once
from torchrec_mtl.modules.id_hash import ANY_ID

__all__ = [
    "ANY_ID",
    "SPLITS",
    "BatchLoader",
    "Field",
    "MultiTaskBatch",
    "Schema",
    "Split",
    "StreamLoader",
    "StreamedSplit",
    "UnknownIds",
    "build_once",
    "check_batch",
    "load_schema",
    "log_round",
    "read_split",
    "stream_split",
]
