"""What the label of a task is: whether an event happens, or a value, which is learned by a loss of its own."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torchrec_mtl.argument_types import check_fields
from torchrec_mtl.errors import InputError, check_at_least, not_one_of

Score = Literal["ranking", "probability", "value", "quantile", "class", "grade"]


@dataclass(frozen=True)
class Kind:
    """Base of the kinds.

    Attributes:
        name: name of the kind in files.
        rule: what a label must be, for messages.
        scores: which metrics measure it, by `Metric.score`.
        has_mean: whether what is predicted is the mean of the label, so that it can be multiplied by a probability.
    """

    rule: ClassVar[str]
    scores: ClassVar[tuple[Score, ...]]
    has_mean: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def num_outputs(self) -> int:
        """Number of columns of the logits."""
        return 1

    def allows(self, labels: Any) -> Any:
        """Whether each label, of an array or a tensor, follows ``rule``."""
        return abs(labels) < math.inf

    def columns(self, task: str) -> tuple[str, ...]:
        """Names of the columns that are predicted for a task of this kind."""
        return (task,)


@dataclass(frozen=True)
class Binary(Kind):
    """An event that happens or does not: the logit of its probability, by cross entropy.

    Example::

        >>> import numpy as np
        >>> Binary().allows(np.array([0.0, 1.0, 0.5])).tolist()
        [True, True, False]
    """

    name: str = field(default="binary", init=False)
    rule: ClassVar[str] = "must be 0 or 1"
    scores: ClassVar[tuple[Score, ...]] = ("ranking", "probability")
    has_mean: ClassVar[bool] = True

    def allows(self, labels: Any) -> Any:
        return (labels == 0) | (labels == 1)


@dataclass(frozen=True)
class SquaredError(Kind):
    """A value whose mean is learned by squared error.

    Example::

        >>> from torchrec_mtl.tasks import Task
        >>> Task("spend", after="buy", kind=SquaredError()).kind.has_mean
        True
    """

    name: str = field(default="squared_error", init=False)
    rule: ClassVar[str] = "must be finite"
    scores: ClassVar[tuple[Score, ...]] = ("value",)
    has_mean: ClassVar[bool] = True


@dataclass(frozen=True)
class Huber(Kind):
    """A value that is learned by Huber's loss: squared near the label, absolute beyond ``delta`` (Huber, 1964).

    What it predicts is between the mean, for a large ``delta``, and the median, for a small one; where the value is
    skewed, as spend is, sums of it come out too low. It is taken for the expected value nevertheless.

    Args:
        delta: where the loss changes, in standard deviations of the training labels.

    Raises:
        InputError: if ``delta`` is not above 0.
    """

    name: str = field(default="huber", init=False)
    delta: float = 1.0
    rule: ClassVar[str] = "must be finite"
    scores: ClassVar[tuple[Score, ...]] = ("value",)
    has_mean: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, delta=self.delta)
        if not self.delta > 0:
            raise InputError(f"`delta` (={self.delta}) must be above 0")


@dataclass(frozen=True)
class ZILN(Kind):
    """A value of at least 0 that is often 0 and otherwise log-normal: spend, lifetime value (Wang et al., 2019).

    Its three outputs are the logit of the probability ``p`` that the value is above 0, and ``mu`` and ``sigma`` of its
    logarithm. What it predicts is the mean, ``p exp(mu + sigma^2 / 2)``.

    Example::

        >>> import numpy as np
        >>> ZILN().num_outputs, ZILN().allows(np.array([0.0, 19.9, -1.0])).tolist()
        (3, [True, True, False])
    """

    name: str = field(default="ziln", init=False)
    rule: ClassVar[str] = "must be finite and at least 0"
    scores: ClassVar[tuple[Score, ...]] = ("value",)
    has_mean: ClassVar[bool] = True

    @property
    def num_outputs(self) -> int:
        return 3

    def allows(self, labels: Any) -> Any:
        return (labels >= 0) & (labels < math.inf)


@dataclass(frozen=True)
class Quantile(Kind):
    """A value of which quantiles are learned, by the pinball loss (Koenker and Bassett, 1978).

    Args:
        levels: the quantiles, rising; 0.5 is the median.

    Raises:
        InputError: if there is no level, they do not rise, or one is not between 0 and 1.

    Example::

        >>> Quantile((0.5, 0.9)).columns("dwell")
        ('dwell_0.5', 'dwell_0.9')
    """

    name: str = field(default="quantile", init=False)
    levels: Sequence[float] = (0.5,)
    rule: ClassVar[str] = "must be finite"
    scores: ClassVar[tuple[Score, ...]] = ("quantile",)

    def __post_init__(self) -> None:
        super().__post_init__()
        levels = tuple(map(float, self.levels))
        if not levels or not all(low < high for low, high in zip((0.0, *levels), (*levels, 1.0), strict=True)):
            raise InputError(f"`levels` (={list(levels)}) must rise, above 0 and below 1")
        object.__setattr__(self, "levels", levels)

    @property
    def num_outputs(self) -> int:
        return len(self.levels)

    def columns(self, task: str) -> tuple[str, ...]:
        return tuple(f"{task}_{level:g}" for level in self.levels)


@dataclass(frozen=True)
class Classes(Kind):
    """One of several classes, which exclude each other: the logits of a softmax, by its cross entropy.

    Args:
        num_classes: number of classes, ``C``; a label is the position of its class.

    Raises:
        InputError: if there are fewer than two classes.

    Example::

        >>> Classes(3).columns("plan")
        ('plan_0', 'plan_1', 'plan_2')
    """

    name: str = field(default="classes", init=False)
    num_classes: int
    scores: ClassVar[tuple[Score, ...]] = ("class",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(2, num_classes=self.num_classes)
        object.__setattr__(self, "rule", f"must be a class, a whole number from 0 to {self.num_classes - 1}")

    @property
    def num_outputs(self) -> int:
        return self.num_classes

    def allows(self, labels: Any) -> Any:
        return (labels >= 0) & (labels < self.num_classes) & (labels == labels.round())

    def columns(self, task: str) -> tuple[str, ...]:
        return tuple(f"{task}_{place}" for place in range(self.num_classes))


@dataclass(frozen=True)
class Ordinal(Classes):
    """One of several classes that have an order, such as stars, by cumulative logits (McCullagh, 1980).

    The outputs are the ``C - 1`` logits of P(class > k), which share what they read and fall from one to the next.

    Args:
        num_classes: number of classes, ``C``; a label is the position of its class, the lowest 0.

    Raises:
        InputError: if there are fewer than two classes.

    Example::

        >>> Ordinal(5).num_outputs
        4
    """

    name: str = field(default="ordinal", init=False)
    scores: ClassVar[tuple[Score, ...]] = ("class", "grade")

    @property
    def num_outputs(self) -> int:
        return self.num_classes - 1


KINDS: Mapping[str, type[Kind]] = {
    "binary": Binary,
    "squared_error": SquaredError,
    "huber": Huber,
    "ziln": ZILN,
    "quantile": Quantile,
    "classes": Classes,
    "ordinal": Ordinal,
}


def kind_of(content: Mapping[str, Any]) -> Kind:
    """Returns the kind of which a file has the fields.

    Raises:
        InputError: if there is no such kind, or it has other arguments.

    Example::

        >>> kind_of({"name": "quantile", "levels": [0.5, 0.9]})
        Quantile(name='quantile', levels=(0.5, 0.9))
    """
    name, arguments = content.get("name"), {key: value for key, value in content.items() if key != "name"}
    if name not in KINDS:
        raise InputError(not_one_of("`kind`", name, KINDS))
    try:
        return KINDS[str(name)](**arguments)
    except TypeError as error:
        raise InputError(f"`kind` (={dict(content)}) must have the arguments of {name!r} ({error})") from error
