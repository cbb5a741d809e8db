"""Which measurements are made: a base, and one axis after the other from there."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch

from benchmarks.embedding_throughput import naming
from benchmarks.embedding_throughput.workload import Workload

REPLICATED = (naming.bare("data_parallel"), naming.ours("data_parallel"))
REPLICATED_ROWS = 10_000  # every step moves all rows of a replicated table between ranks
SHARDED = tuple(naming.bare(kind) for kind in naming.SHARDING_TYPES[1:])
ALONE = (naming.TBE, naming.BAGS, naming.STACKED, naming.EBC, naming.TBE_CACHED)
ON_ONE_RANK = (*ALONE, naming.bare("table_wise"), naming.bare_cached("table_wise"), naming.ours("table_wise"))
QUANTISED = (naming.QUANTISED_TBE, naming.QUANTISED_EBC)
AXES: dict[str, list[dict[str, Any]]] = {
    "tables": [{"tables": "ali_ccp"}, {"tables": "synthetic"}],
    "width": [{"embedding_dim": width} for width in (16, 32, 128)],
    "batch": [{"batch_size": size} for size in (1024, 65536)],
    "ids a bag": [{"ids_a_bag": 10}],
    "ids": [{"exponent": 0.0}],
    "precision": [{"precision": "fp16"}, {"precision": "int8"}],
}


@dataclass(frozen=True)
class Point:
    """Candidates that take turns on one workload.

    Args:
        axis: what of the base is varied.
        workload: tables and ids.
        ranks: processes.
        candidates: names; the first is the baseline.
    """

    axis: str
    workload: Workload
    ranks: int
    candidates: tuple[str, ...]


def _candidates(names: Sequence[str], workload: Workload, ranks: int, device: torch.device) -> tuple[str, ...]:
    return tuple(name for name in names if naming.runs(name, workload, ranks, device))


def default(base: Workload, ranks: Sequence[int], device: torch.device) -> Iterator[Point]:
    """One process first, every axis; then sharding on each number of ranks."""
    varied = [("base", {}), *((axis, change) for axis, changes in AXES.items() for change in changes)]
    for axis, change in varied:
        workload = replace(base, **change)
        yield Point(axis, workload, 1, _candidates((*ON_ONE_RANK, *QUANTISED), workload, 1, device))
    for world_size in ranks:
        yield Point("sharding", base, world_size, (*SHARDED, naming.ours("table_wise")))
        small = replace(base, max_rows=min(base.max_rows, REPLICATED_ROWS))
        yield Point("sharding of small tables", small, world_size, (naming.bare("table_wise"), *REPLICATED))


def quick(base: Workload, device: torch.device) -> Iterator[Point]:
    """A few of each kind."""
    for axis, change in ("base", {"ids_a_bag": 2}), ("precision", {"precision": "int8"}):
        workload = replace(base, **change)
        yield Point(axis, workload, 1, _candidates((*ON_ONE_RANK, *QUANTISED), workload, 1, device))
    if device.type == "cpu":
        yield Point("sharding", base, 2, (*SHARDED[:2], REPLICATED[1]))


def asked(
    base: Workload, axes: Mapping[str, Sequence[Any]], ranks: Sequence[int], names: Sequence[str], device: torch.device
) -> Iterator[Point]:
    """Every combination of what is asked for; ``names`` of candidates that cannot be had in one are left out there.

    Args:
        axes: values by the field of `Workload`; the base's where there is none.
        names: all that the default grid has, if empty.
    """
    for values in product(*axes.values()):
        workload = replace(base, **dict(zip(axes, values, strict=True)))
        for world_size in ranks:
            usual = (*ON_ONE_RANK, *QUANTISED) if world_size == 1 else (*SHARDED, *REPLICATED)
            candidates = _candidates(names or usual, workload, world_size, device)
            if candidates:
                yield Point("asked for", workload, world_size, candidates)
