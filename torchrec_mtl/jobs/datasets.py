"""The data sets that the jobs know by name."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

from torchrec_mtl.data import (
    SyntheticFunnel,
    prepare_ali_ccp,
    prepare_complete_journey,
    prepare_synthetic,
    prepare_taobao,
)
from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs.prepare import StageBars

SYNTHETIC_ROWS = {"train": 1_000_000, "valid": 125_000, "test": 250_000}


def _complete_journey(cache: Path, sample: float, raw: str) -> Path:
    return prepare_complete_journey(cache, sample)


def _synthetic(cache: Path, sample: float, raw: str) -> Path:
    num_rows = {split: max(1, round(rows * sample)) for split, rows in SYNTHETIC_ROWS.items()}
    return prepare_synthetic(cache, SyntheticFunnel(), num_rows)


def _from_raw(name: str, prepare: Callable[..., Path]) -> Callable[[Path, float, str], Path]:
    def prepare_once(cache: Path, sample: float, raw: str) -> Path:
        if not raw:
            raise InputError(f"`raw` must name the folder of {name}'s raw files")
        digest = hashlib.sha256(str(Path(raw).resolve()).encode()).hexdigest()[:8]
        return prepare(raw, cache / f"{name}-{float(sample)}-{digest}", sample=sample, progress=StageBars())

    return prepare_once


DATASETS: dict[str, Callable[[Path, float, str], Path]] = {
    "ali_ccp": _from_raw("ali_ccp", prepare_ali_ccp),
    "complete_journey": _complete_journey,
    "synthetic": _synthetic,
    "taobao": _from_raw("taobao", prepare_taobao),
}


def dataset_directory(dataset: str, sample: float, raw: str = "") -> Path:
    """The prepared data set's folder, prepared first if need be.

    Args:
        dataset: a key of `DATASETS`, or the folder of a prepared data set.
        sample: the share of a named data set's rows.
        raw: the folder of the raw files that "ali_ccp" is prepared from, under protocol "aitm", or "taobao", clicks
            alone.

    Raises:
        InputError: if ``sample`` is not above 0 and at most 1, or ``raw`` is missing.
    """
    if dataset not in DATASETS:
        return Path(dataset)
    if not 0 < sample <= 1:
        raise InputError(f"`sample` (={sample}) must be above 0 and at most 1")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchrec_mtl"
    if not dist.is_initialized() or dist.get_rank() == 0:
        print(f"data: {dataset}, {sample:.0%} of its rows, in {cache}", flush=True)
    return DATASETS[dataset](cache, sample, raw)
