"""The ids that were counted and have no rows yet, as tensors of a checkpoint: one for each bucket of a table."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from torchrec_mtl.modules.row_assignment import RowAssignment
from torchrec_mtl.training.checkpoint.reading import TensorReader

KEY = "pending_ids"


Pending = dict[str, dict[str, Tensor]]


def pending_ids(model: nn.Module) -> Pending:
    """The pending ids of this rank's buckets, under `KEY`; nothing if there are none, as a checkpoint takes tensors."""
    return _under_key(
        {f"{table}/{bucket}": ids for table, rows in _tables(model) for bucket, ids in rows.pending().items()}
    )


def space_for_pending_ids(model: nn.Module, checkpoint: Path) -> Pending:
    """Tensors to read the pending ids of this rank's buckets into, which any ranks may have written."""
    written = TensorReader(checkpoint).read_metadata().state_dict_metadata
    names = [f"{table}/{bucket}" for table, rows in _tables(model) for bucket in rows.buckets_here]
    found = {name: written.get(f"{KEY}.{name}") for name in names}
    return _under_key(
        {
            name: torch.empty(tensor.size, dtype=torch.int64)
            for name, tensor in found.items()
            if isinstance(tensor, TensorStorageMetadata)
        }
    )


def restore_pending_ids(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Continues from the ids that were read."""
    pending = state.get(KEY, {})
    for table, rows in _tables(model):
        names = {bucket: f"{table}/{bucket}" for bucket in rows.buckets_here}
        rows.restore_pending({bucket: pending[name] for bucket, name in names.items() if name in pending})


def _under_key(tensors: dict[str, Tensor]) -> Pending:
    return {KEY: tensors} if tensors else {}


def _tables(model: nn.Module) -> Iterator[tuple[str, RowAssignment]]:
    """The tables with numbers: two models of a task may have tables of the same name."""
    found = [module for module in model.modules() if isinstance(module, RowAssignment)]
    return ((f"{number}/{rows.name}", rows) for number, rows in enumerate(found))
