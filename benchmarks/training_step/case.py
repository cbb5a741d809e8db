"""A model of some size, trained by our own path on a prepared data set: what the step is measured on."""

from dataclasses import dataclass

import torch

from benchmarks.record import ROOT
from benchmarks.scaling.stacks import Endless
from torchrec_mtl.data import BatchLoader, Schema, Split, SyntheticFunnel, prepare_synthetic, read_split
from torchrec_mtl.jobs.compare.efficiency import build_settled
from torchrec_mtl.jobs.run_config import RunConfig
from torchrec_mtl.jobs.settings import Settings, make_config
from torchrec_mtl.systems import SYSTEMS as RECORDS
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.fit import Training, set_seed
from torchrec_mtl.training.monitor import Monitor

DATA = ROOT / "build" / "bench-data"
SYSTEMS = tuple(name for name, record in RECORDS.items() if record.ablation_of is None)
BATCHES_AN_EPOCH = 8


@dataclass(frozen=True)
class Size:
    """What a step's cost depends on.

    Args:
        batch_size: rows.
        num_fields: of one id each, drawn from a power law (exponent 1.05); a table each.
        fewest_rows, most_rows: of a table; the tables' sizes lie evenly between.
        num_tasks: of the funnel.
        num_inducing_points: of TAFE.
        embedding_dim: of every table; fused ones need a multiple of four.
    """

    batch_size: int = 4096
    num_fields: int = 23
    fewest_rows: int = 10_000
    most_rows: int = 100_000
    num_tasks: int = 3
    num_inducing_points: int = 64
    embedding_dim: int = 16

    @property
    def funnel(self) -> SyntheticFunnel:
        """The data."""
        between = (self.most_rows - self.fewest_rows) / (self.num_fields - 1)
        return SyntheticFunnel(
            base_rates=[0.3 * 0.5**task for task in range(self.num_tasks)],
            field_sizes=[round(self.fewest_rows + between * field) for field in range(self.num_fields)],
            num_pairs=1,
            zipf_exponent=1.05,
        )

    def split(self) -> Split:
        """Its rows, laid out once in ``build/`` and memory-mapped."""
        rows = {"train": BATCHES_AN_EPOCH * self.batch_size, "valid": 1, "test": 1}
        directory = prepare_synthetic(DATA, self.funnel, rows)
        return read_split(directory, "train", Schema.load(directory))

    def config(self, system: str) -> RunConfig:
        """The papers' model; its tables are stepped in the backward pass, by row-wise Adagrad."""
        own = {"tafe": {"model_args.num_inducing_points": self.num_inducing_points}}
        common = {"embedding_dim": self.embedding_dim, "training.batch_size": self.batch_size}
        return make_config(RECORDS[system], Settings(common, own))


class Case:
    """A model's training run, to be stepped: `distribute`, `BatchLoader` and the step of `fit`'s loop."""

    def __init__(self, system: str, size: Size, device: torch.device) -> None:
        config, split = size.config(system), size.split()
        set_seed(config.training.seed)
        self.system = system
        self.train_model = build_settled(config, split, device)
        distributed, optimizer = distribute(self.train_model, config.training, device)
        on_gpu = device.type == "cuda"
        self.loader = BatchLoader(split, size.batch_size, shuffle=True, drop_last=True, pin_memory=on_gpu)
        self.training = Training(
            distributed,
            optimizer,
            Endless(self.loader),
            [],
            split.schema.tasks,
            config.training,
            device,
            DATA / "run",
            Monitor(None),
            system,
            lambda: False,
        )
        self.take_step = self.training.take_step

    @property
    def has_begun(self) -> bool:
        """Whether a step was taken: TorchRec's pipeline traces the model in the first."""
        return self.training.result.step > 0

    def close(self) -> None:
        """It is over."""
        self.training.close()

    def mean_loss(self) -> float:
        """Of one step."""
        self.take_step()
        loss_sum, num_rows = self.training.step.take_sums()
        return loss_sum / num_rows
