"""Metrics by name: early stopping, tables and reports take a name, and find here what it is and which way is better."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torchrec_mtl.errors import InputError, check_choice, not_one_of
from torchrec_mtl.metrics.probability import calibration, log_loss, normalized_entropy
from torchrec_mtl.metrics.ranking import auc, gauc

_MERITS: Mapping[str, Callable[[float], float]] = {
    "higher": lambda value: value,
    "lower": lambda value: -value,
    "one": lambda value: -abs(value - 1),
}
_SCORES = ("ranking", "probability")


@dataclass(frozen=True)
class Metric:
    """A metric of one task, and how to read it.

    Args:
        function: ``(logits, labels, weights) -> float`` over columns ``[N]``, called by position, or ``(logits, labels,
            groups, weights)`` if grouped. Labels are 0 or 1, all weights above 0. NaN says that it is undefined,
            one class being absent, say. Of no rows at all it is not asked.
        title: its name in tables and pictures.
        better: whether ``"higher"`` or ``"lower"`` values are better, or those nearer to ``"one"``.
        score: which logits it takes where the step before happened: ``"ranking"`` the marginal ones, ``"probability"``
            the conditional ones; see :class:`MultiTaskMetrics`. Over all impressions both are the marginal ones.
        grouped: whether it needs groups ``[N]``; it is measured only where rows have them.

    Raises:
        InputError: if ``better`` or ``score`` is none of these.

    Example::

        >>> accuracy = Metric(lambda logits, labels, weights: float(((logits > 0) == labels).float().mean()),
        ...                   "accuracy", better="higher", score="probability")
        >>> known = {**METRICS, "accuracy": accuracy}  # what `fit`, `evaluate` and the reports take
    """

    function: Callable[..., float]
    title: str
    better: Literal["higher", "lower", "one"]
    score: Literal["ranking", "probability"]
    grouped: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("better", tuple(_MERITS)), ("score", _SCORES)):
            check_choice(name, getattr(self, name), choices)

    def merit(self, value: float) -> float:
        """A number that is the larger the better ``value`` is.

        Example::

            >>> max([0.7, 0.9, 1.2], key=METRICS["calibration"].merit)
            0.9
        """
        return _MERITS[self.better](value)


METRICS: Mapping[str, Metric] = {
    "auc": Metric(auc, "AUC", better="higher", score="ranking"),
    "log_loss": Metric(log_loss, "log loss", better="lower", score="probability"),
    "normalized_entropy": Metric(normalized_entropy, "normalized entropy", better="lower", score="probability"),
    "calibration": Metric(calibration, "calibration", better="one", score="probability"),
    "gauc": Metric(gauc, "GAUC", better="higher", score="ranking", grouped=True),
}


def find_metric(name: str, known: Mapping[str, Metric], argument: str, with_groups: bool) -> Metric:
    """The metric of this name.

    Args:
        name: what to look up.
        known: all there are.
        argument: what was given the name, for the message.
        with_groups: whether the rows to measure have groups.

    Raises:
        InputError: if there is none of this name, with the nearest; or it needs groups that the rows have not.

    Example::

        >>> find_metric("auk", {"auc": METRICS["auc"]}, "metrics", with_groups=False)
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: `metrics` (='auk') must be one of ['auc']; the nearest is 'auc'
    """
    if name not in known:
        raise InputError(not_one_of(f"`{argument}`", name, known))
    if known[name].grouped and not with_groups:
        raise InputError(f"`{argument}` (={name!r}) must be a metric without groups, as the rows it measures have none")
    return known[name]
