"""The rows of tables that changed since a checkpoint, as a folder that is whole or absent.

The rows are compared with those of the checkpoint, so training keeps no record of what it touches and steps cost
nothing more; TorchRec's `ModelDeltaTracker` records ids, not rows, and none where collisions are managed.
"""

import re
import shutil
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor

from torchrec_mtl.errors import InputError
from torchrec_mtl.files import digest
from torchrec_mtl.modules.id_hash import ANY_ID, unhash_ids
from torchrec_mtl.modules.row_assignment import RowAssignment
from torchrec_mtl.training.checkpoint.manifest import PARTIAL, VERSION, publish, read_manifest, verify
from torchrec_mtl.training.checkpoint.reading import read_tensors
from torchrec_mtl.training.process_group import on_every_rank, on_first_rank

_WEIGHT, _OF_TABLE = ".weight", re.compile(r"(^|\.)(embedding_bags|embeddings)\.[^.]+\.weight$")


class ChangedRows(NamedTuple):
    """What changed in a table.

    Args:
        ids: int64 ``[K]``, rising: numbers of rows; or, for ids without a vocabulary, the ids that have the rows, and
            ``-1 - bucket`` for the row that ids of a bucket without a row share.
        rows: the values of the rows now, ``[K, D]``.
        removed: int64 ``[R]``, rising: ids without a vocabulary that had a row and have none any more.
    """

    ids: Tensor
    rows: Tensor
    removed: Tensor


def save_changed_rows(model: nn.Module, checkpoint: Path, folder: Path, group: dist.ProcessGroup | None = None) -> None:
    """Writes the rows that differ from those of a checkpoint; each rank writes the rows that it has.

    All ranks must call this. Each of them reads its part of one table of the checkpoint after the other, so it needs
    memory for its part of the largest table.

    Args:
        model: model returned by `distribute`, on any number of ranks.
        checkpoint: folder written by `Checkpointer`, on any number of ranks.
        folder: folder to make, visible to all ranks; it appears when it is whole.
        group: gloo group of all ranks; the default group by default.

    Raises:
        InputError: on every rank, if ``folder`` exists or cannot be made, or the checkpoint is damaged or does not fit
            the model.
    """
    partial = folder.with_name(folder.name + PARTIAL)

    def begin() -> None:
        if folder.exists():
            raise InputError(f"{folder}: must not exist yet")
        try:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        except OSError as error:
            raise InputError(f"{folder}: must be a folder that can be made ({error})") from error

    since = verify(checkpoint, group)
    on_first_rank(begin, group)
    rank = dist.get_rank()
    file = partial / f"rank_{rank:05d}.pt"

    def write() -> tuple[str, dict[str, Any]]:
        torch.save(changed, file)
        return file.name, {"bytes": file.stat().st_size, "sha256": digest(file)}

    try:
        changed = {table: list(_changed(model, table, checkpoint, group)) for table in _tables(model)}
        own = on_every_rank(write, group)
        files: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(files, own, group=group)
        body = {"version": VERSION, "rows_changed_since": since["step"], "run": since.get("run"), "files": dict(files)}
        on_first_rank(lambda: publish(partial, folder, body), group)
    finally:
        if rank == 0:
            shutil.rmtree(partial, ignore_errors=True)


def read_changed_rows(folder: Path) -> dict[str, ChangedRows]:
    """Reads what `save_changed_rows` wrote, on any number of ranks, in one process.

    Returns:
        The changed rows of each table, by its path in the model.

    Raises:
        InputError: if the folder holds something else, or a file of it is missing, cut or changed.
    """
    if "rows_changed_since" not in read_manifest(folder):
        raise InputError(f"{folder}: must be a folder of changed rows")
    pieces: dict[str, list[dict[str, Tensor]]] = defaultdict(list)
    for name in sorted(verify(folder)["files"]):
        for table, of_rank in torch.load(folder / name, weights_only=True).items():
            pieces[table] += of_rank
    return {table: _joined(of_table) for table, of_table in pieces.items()}


def _joined(pieces: list[dict[str, Tensor]]) -> ChangedRows:
    """Puts the rows of several shards into one order, and the columns of a row side by side."""
    by_column: dict[int, list[dict[str, Tensor]]] = defaultdict(list)
    for piece in pieces:
        by_column[int(piece["column"])].append(piece)
    columns = []
    for column in sorted(by_column):
        ids, order = torch.cat([piece["ids"] for piece in by_column[column]]).sort()
        columns.append(torch.cat([piece["rows"] for piece in by_column[column]])[order])
    removed = torch.cat([piece["removed"] for piece in by_column[0]]).sort().values
    return ChangedRows(ids, torch.cat(columns, dim=1), removed)


def _tables(model: nn.Module) -> list[str]:
    """The paths of the model's tables, without ``.weight``."""
    return [name[: -len(_WEIGHT)] for name in model.state_dict() if _OF_TABLE.search(name)]


class _Shard(NamedTuple):
    """A part of a table: its first row and first column, and its values."""

    row: int
    column: int
    values: Tensor


def _shards(value: Tensor | ShardedTensor) -> list[_Shard]:
    """The shards that this rank has; the first rank has a table that is whole on every rank."""
    if isinstance(value, ShardedTensor):
        local = [(shard.metadata.shard_offsets, shard.tensor) for shard in value.local_shards()]
        return [_Shard(offsets[0], offsets[1] if offsets[1:] else 0, tensor) for offsets, tensor in local]
    return [_Shard(0, 0, value)] if dist.get_rank() == 0 else []


def _changed(
    model: nn.Module, table: str, checkpoint: Path, group: dist.ProcessGroup | None
) -> Iterator[dict[str, Tensor]]:
    """Yields what changed in each shard of a table that this rank has."""
    state = model.state_dict()
    weight, (ids_name, rows_of_ids) = table + _WEIGHT, _of_ids(model, table)
    with warnings.catch_warnings():  # torch's own about ShardedTensor, which TorchRec has
        warnings.simplefilter("ignore", FutureWarning)
        before = {name: state[name].clone() for name in (weight, *filter(None, [ids_name]))}
    read_tensors({"model": before}, checkpoint, group)
    now, then = _shards(state[weight]), _shards(before[weight])
    changed = [(new.values != old.values).any(dim=1) for new, old in zip(now, then, strict=True)]
    if _has_columns(state[weight]):
        changed = _in_any_column(now, changed, group)
    for shard, rows in zip(now, changed, strict=True):
        ids, removed = torch.arange(shard.row, shard.row + len(rows)), torch.empty(0, dtype=torch.int64)
        if rows_of_ids is not None:
            (was,) = _shards(before[ids_name])
            ids, has_changed = rows_of_ids.ids().cpu(), rows_of_ids.hashed_ids != was.values
            rows = (rows | has_changed) & (ids != ANY_ID).to(rows.device)
            lost = was.values[~torch.isin(was.values, rows_of_ids.hashed_ids)]
            removed = unhash_ids(lost[lost != ANY_ID]).cpu()
        column = torch.tensor(shard.column)
        yield {"column": column, "ids": ids[rows.cpu()], "rows": shard.values[rows].cpu(), "removed": removed}


def _of_ids(model: nn.Module, table: str) -> tuple[str, RowAssignment | None]:
    """The name in the model's state of the ids that have a table's rows, and their module, if there is one."""
    collection, inner, name = table.partition("_embedding_module.embedding_bags.")
    path = f"{collection}_managed_collision_collection._managed_collision_modules.{name}"
    for of_module, module in model.named_modules():
        if inner and isinstance(module, RowAssignment) and f".{of_module}".endswith(f".{path}"):
            return f"{path}.hashed_ids", module
    return "", None


def _has_columns(value: Tensor | ShardedTensor) -> bool:
    """Whether a shard of the table, on any rank, has only some of its columns."""
    if not isinstance(value, ShardedTensor):
        return False
    return any(shard.shard_sizes[1] < value.metadata().size[1] for shard in value.metadata().shards_metadata)


def _in_any_column(shards: list[_Shard], changed: list[Tensor], group: dist.ProcessGroup | None) -> list[Tensor]:
    """Which rows of this rank's shards changed in any column, also of other ranks."""
    own = [torch.nonzero(rows).flatten().cpu() + shard.row for shard, rows in zip(shards, changed, strict=True)]
    of_ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(of_ranks, own, group=group)
    numbers = torch.cat([rows for of_rank in of_ranks for rows in of_rank])
    return [
        torch.isin(torch.arange(shard.row, shard.row + len(rows)), numbers).to(rows.device)
        for shard, rows in zip(shards, changed, strict=True)
    ]
