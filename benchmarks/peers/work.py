"""What is measured with every library: models, sizes and rows."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.peers.common import Sizes
from torchrec_mtl.data import Schema, SyntheticFunnel, prepare_synthetic

OURS = "torchrec_mtl"
MODELS = ("shared_bottom", "mmoe", "ple", "esmm", "aitm")


@dataclass(frozen=True)
class Work:
    """What is measured, and on which rows."""

    funnel: SyntheticFunnel
    num_rows: dict[str, int]
    sizes: Sizes
    models: tuple[str, ...] = MODELS
    steps: int = 4  # a turn
    repeats: int = 7
    seeds: int = 3

    def save(self, temporary: str) -> Path:
        """The rows as a prepared data set, and beside its files what `worker.py` reads."""
        directory = prepare_synthetic(temporary, self.funnel, self.num_rows)
        schema = Schema.load(directory)
        for split in ("train", "test"):
            rows = pl.read_parquet(directory / f"{split}.parquet")
            np.save(directory / f"{split}_ids.npy", rows.select(schema.field_names).to_numpy().astype(np.int64))
            np.save(directory / f"{split}_labels.npy", rows.select(schema.tasks.names).to_numpy().astype(np.float32))
        (directory / "sizes.json").write_text(json.dumps(asdict(self.sizes)))
        return directory


def work(field_sizes: tuple[int, ...], base_rates: tuple[float, ...], train: int, test: int, **sizes: Any) -> Work:
    funnel = SyntheticFunnel(base_rates, field_sizes)
    of_models = Sizes(field_sizes=field_sizes, num_tasks=len(base_rates), num_experts=4, **sizes)
    return Work(funnel, {"train": train, "valid": 1, "test": test}, of_models)


SPEED = work(
    tuple(round(10_000 * 10 ** (i / 22)) for i in range(23)),
    (0.2, 0.05),
    *(65_536, 16_384),
    batch_size=1024,
    embedding_dim=16,
    expert_sizes=(256, 128),
    tower_sizes=(64,),
)
QUALITY = work(
    SyntheticFunnel().field_sizes,
    SyntheticFunnel().base_rates,
    *(400_000, 100_000),
    batch_size=512,
    embedding_dim=8,
    expert_sizes=(128, 64),
    tower_sizes=(32,),
)
QUICK = replace(
    work(
        (50, 60, 70, 80, 90, 100),
        (0.4, 0.2),
        2048,
        2048,
        batch_size=256,
        embedding_dim=4,
        expert_sizes=(8, 4),
        tower_sizes=(4,),
    ),
    models=("mmoe",),
    steps=2,
    repeats=2,
    seeds=1,
)
