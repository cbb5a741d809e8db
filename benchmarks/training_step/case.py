"""A model of some size, trained by our own loop on a prepared data set: what a step is measured on."""

from dataclasses import dataclass

import torch

from benchmarks.record import ROOT
from benchmarks.stacks import our_loop
from torchrec_mtl.data import BatchLoader, Schema, Split, read_split
from torchrec_mtl.datasets import SyntheticFunnel, prepare_synthetic
from torchrec_mtl.jobs.compare.efficiency import build_settled
from torchrec_mtl.jobs.run_config import RunConfig
from torchrec_mtl.jobs.settings import Settings, make_config
from torchrec_mtl.systems import SYSTEMS as RECORDS
from torchrec_mtl.training.loop import TrainingLoop
from torchrec_mtl.training.process_group import set_seed

DATA = ROOT / "build" / "bench-data"
SYSTEMS = tuple(name for name, record in RECORDS.items() if record.ablation_of is None)


@dataclass(frozen=True)
class Size:
    """What a step's cost depends on; every field has a table and ids from a power law (exponent 1.05)."""

    batch_size: int = 4096
    num_fields: int = 23
    fewest_rows: int = 10_000  # of the smallest table; the others' sizes lie evenly between
    most_rows: int = 100_000
    num_tasks: int = 3
    num_inducing_points: int = 64  # of TAFE
    embedding_dim: int = 16  # fused tables need a multiple of four

    @property
    def funnel(self) -> SyntheticFunnel:
        """The synthetic data set."""
        between = (self.most_rows - self.fewest_rows) / (self.num_fields - 1)
        return SyntheticFunnel(
            base_rates=[0.3 * 0.5**task for task in range(self.num_tasks)],
            field_sizes=[round(self.fewest_rows + between * field) for field in range(self.num_fields)],
            num_pairs=1,
            zipf_exponent=1.05,
        )

    def split(self) -> Split:
        """Eight batches, prepared once in ``build/`` and memory-mapped."""
        directory = prepare_synthetic(DATA, self.funnel, {"train": 8 * self.batch_size, "valid": 1, "test": 1})
        return read_split(directory, "train", Schema.load(directory))

    def config(self, system: str) -> RunConfig:
        """The system with its paper's sizes; row-wise Adagrad steps the tables in the backward pass."""
        own = {"tafe": {"model_args.num_inducing_points": self.num_inducing_points}}
        common = {"embedding_dim": self.embedding_dim, "training.batch_size": self.batch_size}
        return make_config(RECORDS[system], Settings(common, own))


def begin(system: str, size: Size, device: torch.device) -> TrainingLoop:
    """Begins a run of ``system``, its schedules as training leaves them; the process group must stand."""
    config, split = size.config(system), size.split()
    set_seed(config.training.seed)
    model = build_settled(config, split, device)
    loader = BatchLoader(split, size.batch_size, shuffle=True, drop_last=True, pin_memory=device.type == "cuda")
    return our_loop(model, loader, split.schema.tasks, config.training, device)
