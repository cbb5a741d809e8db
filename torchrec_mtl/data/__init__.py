"""Data: prepared data sets, their reader, and batches."""

from torchrec_mtl.data import complete_journey_sizes
from torchrec_mtl.data.ali_ccp import prepare_ali_ccp
from torchrec_mtl.data.batches import MultiTaskBatch
from torchrec_mtl.data.complete_journey import prepare_complete_journey
from torchrec_mtl.data.loader import BatchLoader
from torchrec_mtl.data.publish import build_once
from torchrec_mtl.data.reader import read_split
from torchrec_mtl.data.schema import SPLITS, Field, Schema
from torchrec_mtl.data.split import Split
from torchrec_mtl.data.synthetic import SyntheticFunnel
from torchrec_mtl.data.synthetic_dataset import oracle_auc, prepare_synthetic
from torchrec_mtl.data.taobao import prepare_taobao
from torchrec_mtl.data.transforms import log_round

__all__ = [
    "SPLITS",
    "BatchLoader",
    "Field",
    "MultiTaskBatch",
    "Schema",
    "Split",
    "SyntheticFunnel",
    "build_once",
    "complete_journey_sizes",
    "log_round",
    "oracle_auc",
    "prepare_ali_ccp",
    "prepare_complete_journey",
    "prepare_synthetic",
    "prepare_taobao",
    "read_split",
]
