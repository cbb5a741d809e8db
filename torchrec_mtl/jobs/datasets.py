"""The data sets that the jobs know by name."""

import os
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from torchrec_mtl.data import SyntheticFunnel, prepare_complete_journey, prepare_synthetic
from torchrec_mtl.errors import InputError

SYNTHETIC_ROWS = {"train": 1_000_000, "valid": 125_000, "test": 250_000}


def _synthetic(cache: Path, sample: float) -> Path:
    num_rows = {split: max(1, round(rows * sample)) for split, rows in SYNTHETIC_ROWS.items()}
    return prepare_synthetic(cache, SyntheticFunnel(), num_rows)


DATASETS: dict[str, Callable[[Path, float], Path]] = {
    "complete_journey": prepare_complete_journey,
    "synthetic": _synthetic,
}


def dataset_directory(dataset: str, sample: float) -> Path:
    """The prepared data set's folder, prepared first if need be.

    Args:
        dataset: a key of `DATASETS`, or the folder of a prepared data set.
        sample: the share of a named data set's rows.

    Raises:
        InputError: if ``sample`` is not above 0 and at most 1.
    """
    if dataset not in DATASETS:
        return Path(dataset)
    if not 0 < sample <= 1:
        raise InputError(f"`sample` (={sample}) must be above 0 and at most 1")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchrec_mtl"
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(f"data: {dataset}, {sample:.0%} of its rows, in {cache}", flush=True)
    return DATASETS[dataset](cache, sample)
