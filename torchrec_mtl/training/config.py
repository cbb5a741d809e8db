"""What a training run is: plain frozen values, checked where they are made."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from torchrec_mtl.errors import InputError, check_at_least, check_choice

TABLE_OPTIMIZERS = ("rowwise_adagrad", "adagrad", "sgd", "adam")
SHARDINGS = (
    "auto",
    "data_parallel",
    "table_wise",
    "row_wise",
    "column_wise",
    "table_row_wise",
    "table_column_wise",
    "grid_shard",
)
PRECISIONS = ("fp32", "bf16")
DECAYS = ("none", "linear")
NON_FINITE = ("stop", "skip")


@dataclass(frozen=True)
class TableConfig:
    """How a table is stepped and where it lies.

    Args:
        optimizer: ``"rowwise_adagrad"``, ``"adagrad"`` and ``"sgd"`` run fused with the backward pass. ``"adam"``
            does on CUDA; fbgemm has none for the CPU, so there the table is replicated and stepped as dense
            parameters are, which suits small tables.
        learning_rate: of the table.
        sharding: a TorchRec sharding type, or ``"auto"`` for the planner's choice among those that keep the
            optimizer fused. ``"data_parallel"`` replicates the table on every rank and steps it after the backward
            pass with the same optimizer. Under column-wise types, ``"table_column_wise"`` and ``"grid_shard"``,
            row-wise Adagrad keeps a state for each row of each column shard: training then differs from that of the
            whole table.

    Raises:
        InputError: if an optimizer or sharding is unknown or the rate negative.
    """

    optimizer: Literal["rowwise_adagrad", "adagrad", "sgd", "adam"] = "rowwise_adagrad"
    learning_rate: float = 0.05
    sharding: str = "auto"

    def __post_init__(self) -> None:
        check_choice("optimizer", self.optimizer, TABLE_OPTIMIZERS)
        check_choice("sharding", self.sharding, SHARDINGS)
        check_at_least(0, learning_rate=self.learning_rate)


@dataclass(frozen=True)
class OptimizerConfig:
    """How dense parameters are stepped: with AdamW.

    Args:
        learning_rate: of the dense parameters.
        weight_decay: of the dense parameters, decoupled from the gradient.
        max_gradient_norm: gradients of one step are scaled down to this norm, taken over all parameters stepped after
            the backward pass; 0 leaves them. Tables with fused optimizers have no part in it.

    Raises:
        InputError: if a number is negative.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    max_gradient_norm: float = 0.0

    def __post_init__(self) -> None:
        check_at_least(0, **{name.name: getattr(self, name.name) for name in fields(self)})


@dataclass(frozen=True)
class CheckpointConfig:
    """When the state of a run is kept.

    Args:
        interval: steps between checkpoints, besides the one after every evaluation; 0 for none.
        keep_last: how many of the newest stay; the best by validation stays too.
        asynchronous: whether files are written while training goes on, from a copy in host memory.

    Raises:
        InputError: if a number is out of its range.
    """

    interval: int = 0
    keep_last: int = 1
    asynchronous: bool = False

    def __post_init__(self) -> None:
        check_at_least(0, interval=self.interval)
        check_at_least(1, keep_last=self.keep_last)


@dataclass(frozen=True)
class TrainingConfig:
    """One training run.

    Args:
        batch_size: rows a step, over all ranks.
        micro_batches: in how many parts, one after the other, a step's rows go through the model; gradients of
            dense parameters and replicated tables are accumulated, tables with fused optimizers are stepped by every
            part.
        shuffle_window: rows that are shuffled together, see `torchrec_mtl.data.BatchLoader`; 0 for all of the split.
        max_epochs: passes over the training split at most.
        evaluations_per_epoch: how often the validation split is read in an epoch.
        early_stopping_metric: the name of the metric by which validation chooses the best weights: its mean over the
            tasks, over all impressions. Which way is better is the metric's; `fit` looks it up.
        patience: evaluations without a better one after which training stops.
        seed: of initialisation, dropout and the order of rows. The same seed, ranks and threads on a CPU repeat a
            run bit for bit.
        precision: ``"fp32"``, or ``"bf16"`` for autocast.
        learning_rate_decay: ``"none"``, or ``"linear"`` from the full rates at the first step to 0 after the last of
            ``max_epochs``.
        non_finite_loss: ``"stop"`` before anything is stepped, with the batch saved; or ``"skip"`` the batch and
            count it.
        optimizer: see `OptimizerConfig`.
        table: see `TableConfig`; what holds for every table.
        tables: exceptions, by the table's name: ``{"user": {"sharding": "row_wise"}}``.
        checkpoint: see `CheckpointConfig`.

    Raises:
        InputError: if a value is out of its range.
    """

    batch_size: int = 1024
    micro_batches: int = 1
    shuffle_window: int = 0
    max_epochs: int = 1
    evaluations_per_epoch: int = 1
    early_stopping_metric: str = "auc"
    patience: int = 3
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    learning_rate_decay: Literal["none", "linear"] = "none"
    non_finite_loss: Literal["stop", "skip"] = "stop"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    table: TableConfig = field(default_factory=TableConfig)
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("learning_rate_decay", self.learning_rate_decay, DECAYS)
        check_choice("non_finite_loss", self.non_finite_loss, NON_FINITE)
        check_at_least(
            1,
            batch_size=self.batch_size,
            micro_batches=self.micro_batches,
            max_epochs=self.max_epochs,
            evaluations_per_epoch=self.evaluations_per_epoch,
            patience=self.patience,
        )
        check_at_least(0, seed=self.seed, shuffle_window=self.shuffle_window)
        known = [each.name for each in fields(TableConfig)]
        for name, exceptions in self.tables.items():
            for key in exceptions:
                if key not in known:
                    raise InputError(f"`tables` of {name}: {key!r} must be one of {known}")
            try:
                self.table_config(name)
            except InputError as error:
                raise InputError(f"`tables` of {name}: {error}") from None

    def table_config(self, name: str) -> TableConfig:
        """What holds for the table ``name``.

        Example::

            >>> config = TrainingConfig(tables={"user": {"sharding": "row_wise"}})
            >>> config.table_config("user").sharding, config.table_config("item").sharding
            ('row_wise', 'auto')
        """
        return replace(self.table, **self.tables.get(name, {}))
