"""The settings of a training run: plain frozen values, checked where they are made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from torchrec_mtl.argument_types import check_fields
from torchrec_mtl.errors import InputError, check_at_least, check_choice, check_positive_share
from torchrec_mtl.modules.eviction import EVICTIONS, Eviction
from torchrec_mtl.modules.row_assignment import check_num_rows
from torchrec_mtl.training.balancing import check_balancing

TABLE_OPTIMIZERS = ("rowwise_adagrad", "adagrad", "sgd", "adam", "sparse_adam", "rowwise_adam")
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
TABLE_PRECISIONS = ("fp32", "fp16")
EXCHANGES = ("fp32", "fp16", "bf16")
DECAYS = ("none", "linear")
NON_FINITE = ("stop", "skip")
PIPELINES = ("auto", "base", "sparse_dist")


@dataclass(frozen=True)
class TableConfig:
    """How embedding tables are updated and placed.

    Args:
        optimizer: optimizer of the table, the same algorithm on every device. ``"rowwise_adagrad"``, ``"adagrad"``,
            ``"sgd"`` are fused with the backward pass. ``"adam"`` updates every row in every step, as dense parameters
            are: the table is replicated, which suits small ones. ``"sparse_adam"``, another algorithm, is fused and
            updates the rows and moments of a batch's ids alone, as ``torch.optim.SparseAdam``; ``"rowwise_adam"`` too,
            with one second moment a row. On a CPU these two need the kernels of `torchrec_mtl.ops`; neither was
            run on a GPU yet.
        learning_rate: learning rate of the table.
        sharding: TorchRec sharding type of the table, or ``"auto"``: the planner chooses among the types that keep the
            optimizer fused. ``"data_parallel"`` replicates the table on every rank and updates it after the backward
            pass with the same optimizer. With the column-wise types (``"column_wise"``, ``"table_column_wise"``,
            ``"grid_shard"``), the row-wise optimizers keep a state for each row of each column shard, so training
            differs from that of the whole table.
        precision: type in which the table holds its values: ``"fp32"``, or ``"fp16"``, which halves their bytes and
            rounds every updated value, on a CPU to the nearest, so that steps below half of its last bit are lost, and
            on CUDA at random, so that they are right on average. Lookups, gradients and the optimizer's state stay in
            fp32. For fused optimizers; on a CPU not for the last two, and with fbgemm's kernels, which are slower.

    Raises:
        InputError: if an optimizer, sharding type or precision is unknown, the learning rate is negative, or a table in
            fp16 would be replicated.
    """

    optimizer: Literal["rowwise_adagrad", "adagrad", "sgd", "adam", "sparse_adam", "rowwise_adam"] = "rowwise_adagrad"
    learning_rate: float = 0.05
    sharding: str = "auto"
    precision: Literal["fp32", "fp16"] = "fp32"

    def __post_init__(self) -> None:
        check_fields(self)
        check_choice("optimizer", self.optimizer, TABLE_OPTIMIZERS)
        check_choice("sharding", self.sharding, SHARDINGS)
        check_choice("precision", self.precision, TABLE_PRECISIONS)
        if self.precision != "fp32" and (self.optimizer == "adam" or self.sharding == "data_parallel"):
            why = "`optimizer` (='adam')" if self.optimizer == "adam" else "`sharding` (='data_parallel')"
            raise InputError(f"`precision` (={self.precision!r}) must be 'fp32' with {why}, which replicates the table")
        check_at_least(0, learning_rate=self.learning_rate)


@dataclass(frozen=True)
class ZchConfig:
    """Which fields have ids without a vocabulary, and how their ids get rows ("zero-collision hashing" in TorchRec).

    Args:
        fields: names of the fields.
        num_rows: rows of the table of each of these fields, a multiple of ``buckets``.
        num_rows_of: rows of the tables of single fields that differ, by field name: ``{"user": 1048576}``.
        eviction: whose row a new id gets when none is free: of the id that was seen the fewest times (``"lfu"``), or
            the longest time ago (``"lru"``), or of both (``"distance_lfu"``), or nobody's (``"none"``); see
            `torchrec_mtl.modules.row_assignment.RowAssignment`.
        interval: number of batches between two times that ids get rows. At 1 every id of a batch that is worth a row
            has one in that batch; a larger number takes less time.
        buckets: number of parts that each table is cut into. The number of processes must divide it.
        decay: exponent of ``"distance_lfu"``: the larger, the sooner an id is forgotten.

    Raises:
        InputError: if a value is out of its range.
    """

    fields: Sequence[str] = ()
    num_rows: int = 65_536
    num_rows_of: Mapping[str, int] = field(default_factory=dict)
    eviction: Eviction = "lfu"
    interval: int = 10
    buckets: int = 32
    decay: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_choice("eviction", self.eviction, EVICTIONS)
        check_at_least(1, num_rows=self.num_rows, interval=self.interval, buckets=self.buckets)
        check_at_least(0, decay=self.decay)
        for name in self.num_rows_of:
            check_at_least(1, num_rows_of=self.num_rows_of[name])
            if name not in self.fields:
                raise InputError(f"`num_rows_of` (={name!r}) must be of `fields` (={list(self.fields)})")
        for name in self.fields:
            check_num_rows(name, self.rows_of(name), self.buckets)

    def rows_of(self, name: str) -> int:
        """Rows of the table of the field ``name``.

        Example::

            >>> zch = ZchConfig(fields=["user", "item"], num_rows_of={"user": 1_048_576})
            >>> zch.rows_of("user"), zch.rows_of("item")
            (1048576, 65536)
        """
        return self.num_rows_of.get(name, self.num_rows)


@dataclass(frozen=True)
class OptimizerConfig:
    """How dense parameters are updated, with AdamW.

    Args:
        learning_rate: learning rate of the dense parameters.
        weight_decay: weight decay of the dense parameters, decoupled from the gradient.
        max_gradient_norm: norm to which the gradients of a step are scaled down, taken over all parameters that are
            updated after the backward pass; 0 for no limit. Tables with fused optimizers are not included.

    Raises:
        InputError: if a number is negative.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    max_gradient_norm: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(0, **{name.name: getattr(self, name.name) for name in fields(self)})


@dataclass(frozen=True)
class CheckpointConfig:
    """When the state of a run is saved.

    Args:
        interval: number of steps between checkpoints, in addition to the checkpoint after every evaluation; 0 for none.
        keep_last: number of newest checkpoints to keep; the best one by validation is kept too.
        asynchronous: whether files are written while training continues, from a copy in host memory.

    Raises:
        InputError: if a number is out of its range.
    """

    interval: int = 0
    keep_last: int = 1
    asynchronous: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(0, interval=self.interval)
        check_at_least(1, keep_last=self.keep_last)


@dataclass(frozen=True)
class TrainingConfig:
    """The settings of one training run.

    Args:
        batch_size: number of rows in a step, over all ranks.
        micro_batches: number of parts that the rows of a step are split into and that go through the model one after
            the other. Gradients of dense parameters and replicated tables are accumulated; tables with fused optimizers
            are updated by every part.
        shuffle_window: number of rows that are shuffled together, see `torchrec_mtl.data.BatchLoader`; 0 for the whole
            split. For data that are read in place, see `StreamLoader`; 0 for 2^20, or four row groups.
        negative_rate: share of the training rows without a label of 1 that are used, another one in each epoch. Each
            has ``1 / negative_rate`` times its weight, so probabilities are right for any tasks, losses that are sums
            over rows, and ``task_weights``; see `torchrec_mtl.data.BatchLoader`. ``batch_size`` counts all rows: take
            a larger one. Not for data that are read in place.
        max_epochs: largest number of passes over the training split.
        evaluations_per_epoch: number of times that the validation split is evaluated in an epoch.
        log_interval: number of steps between two records of the loss in ``metrics.jsonl`` and the trackers, besides
            those at evaluations; 0 for none. Each is the mean since the record before, over the rows of all ranks.
        early_stopping_metric: name of the metric by which validation chooses the best weights: its mean over the tasks,
            over all impressions. The metric itself says whether higher or lower is better.
        patience: number of evaluations without improvement after which training stops.
        seed: seed of initialisation, dropout and the order of rows. On a CPU, the same seed with the same number of
            ranks and threads repeats a run bit for bit.
        precision: ``"fp32"``, or ``"bf16"`` for autocast.
        exchange_precision: type in which ranks send each other what they looked up in sharded tables, and its
            gradients: ``"fp32"``; ``"fp16"``, where gradients are scaled up by ``batch_size`` on their way; or
            ``"bf16"``, which CUDA alone can send. 16 bits halve what is sent, and round it; see docs/scaling.md.
        balancing: how the tasks' losses are balanced: ``"sum"`` takes the loss as it is; or ``"uncertainty"``,
            ``"dwa"``, ``"static"``, ``"pcgrad"``, ``"mgda"``, ``"cagrad"``, ``"gradnorm"``, ``"famo"``,
            ``"aligned_mtl"``, see `torchrec_mtl.training.balancing`.
        balancing_args: arguments of the balancing, by name.
        learning_rate_decay: ``"none"``, or ``"linear"`` from the full learning rates at the first step to 0 after the
            last step of ``max_epochs``.
        non_finite_loss: what to do when a loss or its gradient is not finite: ``"stop"`` before any update and save the
            batch, or ``"skip"`` the batch, print where it was and count it.
        max_consecutive_skips: number of batches skipped one after the other at which the run stops. Bad rows are spread
            over the data: if one batch in a hundred is bad, ten in a row come about once in 10^20 batches. Parameters
            that are not finite make every batch bad.
        pipeline: TorchRec's train pipeline: ``"base"``, or ``"sparse_dist"``, which sends the ids of the next batch to
            the ranks of their tables during a step. ``"auto"`` is ``"sparse_dist"`` on CUDA if a table is sharded,
            and ``"base"`` otherwise. The history is the same.
        optimizer: optimizer of dense parameters, see `OptimizerConfig`.
        table: settings of all tables, see `TableConfig`.
        tables: settings of single tables that differ, by table name: ``{"user": {"sharding": "row_wise"}}``.
        checkpoint: when to save the state, see `CheckpointConfig`.

    Raises:
        InputError: if a value is out of its range.
    """

    batch_size: int = 1024
    micro_batches: int = 1
    shuffle_window: int = 0
    negative_rate: float = 1.0
    max_epochs: int = 1
    evaluations_per_epoch: int = 1
    log_interval: int = 100
    early_stopping_metric: str = "auc"
    patience: int = 3
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    exchange_precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    balancing: str = "sum"
    balancing_args: Mapping[str, Any] = field(default_factory=dict)
    learning_rate_decay: Literal["none", "linear"] = "none"
    non_finite_loss: Literal["stop", "skip"] = "stop"
    max_consecutive_skips: int = 10
    pipeline: Literal["auto", "base", "sparse_dist"] = "auto"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    table: TableConfig = field(default_factory=TableConfig)
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        check_fields(self)
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("exchange_precision", self.exchange_precision, EXCHANGES)
        check_balancing(self.balancing, self.balancing_args)
        check_choice("learning_rate_decay", self.learning_rate_decay, DECAYS)
        check_choice("non_finite_loss", self.non_finite_loss, NON_FINITE)
        check_choice("pipeline", self.pipeline, PIPELINES)
        check_at_least(
            1,
            batch_size=self.batch_size,
            micro_batches=self.micro_batches,
            max_epochs=self.max_epochs,
            evaluations_per_epoch=self.evaluations_per_epoch,
            patience=self.patience,
            max_consecutive_skips=self.max_consecutive_skips,
        )
        check_at_least(0, seed=self.seed, shuffle_window=self.shuffle_window, log_interval=self.log_interval)
        check_positive_share(negative_rate=self.negative_rate)
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
        """The settings of the table called ``name``.

        Example::

            >>> config = TrainingConfig(tables={"user": {"sharding": "row_wise"}})
            >>> config.table_config("user").sharding, config.table_config("item").sharding
            ('row_wise', 'auto')
        """
        return replace(self.table, **self.tables.get(name, {}))
