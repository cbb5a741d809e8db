"""The settings of a run: plain frozen values; only the classes of the system and the loss are not JSON."""

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from functools import lru_cache
from typing import Any

from torch import nn

from torchrec_mtl.data import Split, StreamedSplit
from torchrec_mtl.data.fingerprint import joined
from torchrec_mtl.errors import InputError, check_at_least
from torchrec_mtl.files import to_json
from torchrec_mtl.modules import HistoryConfig
from torchrec_mtl.systems import LOSSES, System
from torchrec_mtl.training.config import TrainingConfig, ZchConfig


@dataclass(frozen=True)
class RunConfig:
    """The run of one system.

    Args:
        system: system that is trained.
        embedding_dim: dimension ``D`` of every embedding table; TAFE's paper has 18.
        table_init: standard deviation of the normal distribution from which tables are initialised.
        scene: field whose ids, one in a row, are scenes, such as the page or the app: the test split is also measured
            in each of them; by default none.
        scene_gate: whether the scene scales the embeddings of the model, as in PEPNet's EPNet.
        loss: class of the loss; the loss of the system by default.
        model_args: arguments of the model.
        loss_args: arguments of the loss.
        zch: fields whose ids have no vocabulary, see `ZchConfig`.
        histories: fields whose order matters, see `HistoryConfig`.
        training: settings of the training, see `TrainingConfig`.

    Raises:
        InputError: if a number is out of its range.
    """

    system: System
    embedding_dim: int = 18
    table_init: float = 0.01
    scene: str = ""
    scene_gate: bool = False
    loss: Callable[..., nn.Module] = None  # type: ignore[assignment]  # `__post_init__`
    model_args: Mapping[str, Any] = field(default_factory=dict)
    loss_args: Mapping[str, Any] = field(default_factory=dict)
    zch: ZchConfig = field(default_factory=ZchConfig)
    histories: HistoryConfig = field(default_factory=HistoryConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        check_at_least(1, embedding_dim=self.embedding_dim)
        check_at_least(0, table_init=self.table_init)
        if self.scene_gate and not self.scene:
            raise InputError("`scene_gate` (=True) must come with the field of the `scene`")
        if self.loss is None:
            object.__setattr__(self, "loss", self.system.loss)

    @property
    def name(self) -> str:
        """Name of the system."""
        return self.system.name

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return self.training.seed

    @property
    def early_stopping_metric(self) -> str:
        """Name of the metric by which validation chooses."""
        return self.training.early_stopping_metric

    def as_dict(self) -> dict[str, Any]:
        """The settings in plain values, for JSON; classes are given by name."""
        others = [each.name for each in fields(self) if each.name not in ("system", "loss")]
        return {
            "system": self.name,
            "loss": loss_name(self.loss),
            **{name: plain(getattr(self, name)) for name in others},
        }


def loss_name(loss: Callable[..., nn.Module]) -> str:
    """Key of the loss in `LOSSES`, or ``module:CLASS`` for a loss from elsewhere.

    Example::

        >>> loss_name(LOSSES["dependence"])
        'dependence'
    """
    known = {taker: name for name, taker in LOSSES.items()}
    return known.get(loss) or f"{loss.__module__}:{getattr(loss, '__qualname__', loss)}"


def plain(value: Any) -> Any:
    """The value in types that JSON has."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Mapping):
        return {key: plain(of_key) for key, of_key in value.items()}
    return list(value) if isinstance(value, tuple) else value


def describe_data(splits: Mapping[str, Split | StreamedSplit]) -> str:
    """The name, the rows and the fingerprint of a data set: what a run records, so that it is not mixed with others.

    Args:
        splits: all splits, in the order of `SPLITS`.
    """
    rows = " + ".join(str(len(split)) for split in splits.values())
    fingerprint, first = joined(split.fingerprint for split in splits.values()), next(iter(splits.values()))
    streamed = ", streamed" if isinstance(first, StreamedSplit) else ""  # and so of another order
    return f"{first.schema.name}, {rows} rows{streamed}, fingerprint {fingerprint}"


def first_difference(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """Describes the first setting that differs between a run that was made and the one asked for; None if none does.

    A setting of `RunConfig` that is newer than the run counts as having had its default value; arguments of models and
    losses do not.

    Example::

        >>> first_difference({"training": {"seed": 0}}, {"training": {"seed": 1}})
        'training.seed=0, now 1 is asked for'
        >>> first_difference({"training": {"seed": 0}}, {"training": {"seed": 0, "pipeline": "auto"}})
    """
    was, now = (_plain_by_path(config) for config in (made, wanted))
    was |= {setting: _former_default(setting, was) for setting in now.keys() - was.keys()}
    for setting in sorted({*was, *now}):
        if was.get(setting) != now.get(setting):
            return f"{setting}={was.get(setting)!r}, now {now.get(setting)!r} is asked for"
    return None


def _plain_by_path(config: Mapping[str, Any]) -> dict[str, Any]:
    return flat(json.loads(to_json(config)))  # JSON makes lists of tuples


def _former_default(setting: str, was: Mapping[str, Any]) -> Any:
    """The default of a setting that ``was`` lacks; None where it has none, or where all tables had another value."""
    if setting.startswith("training.tables."):
        setting = f"training.table.{setting.rpartition('.')[2]}"
        if setting in was:
            return None
    return _defaults().get(setting)


@lru_cache(maxsize=1)
def _defaults() -> dict[str, Any]:
    """The settings of `RunConfig` that have a default, by path; arguments of models and losses have none there."""
    of_fields = {each.name: each.default_factory() for each in fields(RunConfig) if each.default_factory is not MISSING}
    of_fields |= {each.name: each.default for each in fields(RunConfig) if each.default is not MISSING}
    return _plain_by_path({name: plain(value) for name, value in of_fields.items()})


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a nested configuration by path."""
    settings: dict[str, Any] = {}
    for name, value in config.items():
        settings |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return settings
