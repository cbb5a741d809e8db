"""What a training run is: plain frozen values, checked where they are made."""

from dataclasses import dataclass, field
from typing import Literal

from torchrec_mtl.errors import InputError

TABLE_OPTIMIZERS = ("rowwise_adagrad", "adagrad", "sgd", "adam")
PRECISIONS = ("fp32", "bf16")
DECAYS = ("none", "linear")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise InputError(f"`{name}` (={value!r}) must be one of {list(choices)}")


def _check_at_least(least: float, **values: float) -> None:
    for name, value in values.items():
        if value < least:
            raise InputError(f"`{name}` (={value}) must be at least {least}")


@dataclass(frozen=True)
class OptimizerConfig:
    """How parameters are stepped: Adam for the dense ones, an optimizer of their own for the tables.

    Args:
        learning_rate: of Adam on the dense parameters.
        weight_decay: decoupled, of the dense parameters.
        table_optimizer: ``"rowwise_adagrad"``, ``"adagrad"`` and ``"sgd"`` run fused with the backward pass.
            ``"adam"`` does on CUDA; fbgemm has none for the CPU, so there the tables are replicated on every
            rank and stepped as dense parameters: for small tables.
        table_learning_rate: of the tables' optimizer.

    Raises:
        InputError: if an optimizer is unknown or a number negative.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    table_optimizer: Literal["rowwise_adagrad", "adagrad", "sgd", "adam"] = "rowwise_adagrad"
    table_learning_rate: float = 0.05

    def __post_init__(self) -> None:
        _check_choice("table_optimizer", self.table_optimizer, TABLE_OPTIMIZERS)
        _check_at_least(
            0,
            learning_rate=self.learning_rate,
            table_learning_rate=self.table_learning_rate,
            weight_decay=self.weight_decay,
        )


@dataclass(frozen=True)
class TrainingConfig:
    """One training run.

    Args:
        batch_size: rows a step, over all ranks.
        max_epochs: passes over the training split at most.
        evaluations_per_epoch: how often the validation split is read in an epoch.
        patience: evaluations without a better mean validation AUC after which training stops.
        seed: of initialisation, dropout and the order of rows. The same seed, ranks and threads on a CPU repeat a
            run bit for bit.
        precision: ``"fp32"``, or ``"bf16"`` for autocast.
        learning_rate_decay: ``"none"``, or ``"linear"`` from the full rates at the first step to 0 after the last of
            ``max_epochs``.
        optimizer: see `OptimizerConfig`.

    Raises:
        InputError: if a value is out of its range.
    """

    batch_size: int = 1024
    max_epochs: int = 1
    evaluations_per_epoch: int = 1
    patience: int = 3
    seed: int = 0
    precision: Literal["fp32", "bf16"] = "fp32"
    learning_rate_decay: Literal["none", "linear"] = "none"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)

    def __post_init__(self) -> None:
        _check_choice("precision", self.precision, PRECISIONS)
        _check_choice("learning_rate_decay", self.learning_rate_decay, DECAYS)
        _check_at_least(
            1,
            batch_size=self.batch_size,
            max_epochs=self.max_epochs,
            evaluations_per_epoch=self.evaluations_per_epoch,
            patience=self.patience,
        )
        _check_at_least(0, seed=self.seed)
