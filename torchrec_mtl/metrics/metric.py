"""Metrics by name. Early stopping, tables and reports take a name and look up here which values are better."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from torchrec_mtl.argument_types import check_fields, checked
from torchrec_mtl.errors import InputError, check_choice, not_one_of
from torchrec_mtl.kinds import Score
from torchrec_mtl.metrics.classes import (
    ACCURACY,
    CLASS_LOG_LOSS,
    CLASS_MAE,
    class_accuracy,
    class_log_loss,
    class_mae,
)
from torchrec_mtl.metrics.parts import Parts
from torchrec_mtl.metrics.probability import (
    CALIBRATION,
    LOG_LOSS,
    NORMALIZED_ENTROPY,
    calibration,
    log_loss,
    normalized_entropy,
)
from torchrec_mtl.metrics.ranking import AUC, GAUC, auc, gauc
from torchrec_mtl.metrics.values import (
    GINI,
    LIFT,
    MAE,
    PINBALL,
    RMSE,
    VALUE_CALIBRATION,
    gini,
    lift,
    mae,
    pinball,
    rmse,
    value_calibration,
)
from torchrec_mtl.tasks import TaskForest

_MERITS: Mapping[str, Callable[[float], float]] = {
    "higher": lambda value: value,
    "lower": lambda value: -value,
    "one": lambda value: -abs(value - 1),
}
_SCORES = get_args(Score)


@dataclass(frozen=True)
class Metric:
    """A metric of one task, and how to read it.

    Args:
        function: ``(logits, labels, weights) -> float`` on columns ``[N]``, or ``(logits, labels, groups, weights)`` if
            grouped; the arguments are passed by position. Labels are 0 or 1, and all weights are above 0. It returns
            NaN where the metric is undefined, for example if a class is absent. It is never called without rows.
        title: name of the metric in tables and pictures.
        better: which values are better: ``"higher"``, ``"lower"``, or nearer to ``"one"``.
        score: what the metric reads where the previous step happened: ``"probability"`` for the conditional logits,
            ``"ranking"`` for either of two scores, so that it has two values; see :func:`measured_as`. Over all
            impressions, both read the marginal logits. ``"value"`` and ``"quantile"`` are for tasks of these kinds: a
            metric reads predicted and true values ``[N]``, see `rmse`, or quantiles ``[N, 2]``, see `pinball`. So are
            ``"class"`` and, for classes that have an order, ``"grade"``: see `class_accuracy`.
        grouped: whether the metric needs groups ``[N]``; it is measured only where rows have groups.
        parts: how several ranks measure the metric with no rank holding the rows of all; without it, every rank
            receives the score, label, group and weight of all rows, one space at a time.

    Raises:
        InputError: if ``better`` or ``score`` is none of the values above, or ``parts`` are by groups and the metric
            is not ``grouped``, or by scores and it is.

    Example::

        >>> accuracy = Metric(lambda logits, labels, weights: float(((logits > 0) == labels).float().mean()),
        ...                   "accuracy", better="higher", score="probability")
        >>> known = {**METRICS, "accuracy": accuracy}  # for `TrainingLoop`, `evaluate` and the reports
    """

    function: Callable[..., float]
    title: str
    better: Literal["higher", "lower", "one"]
    score: Score
    grouped: bool = False
    parts: Parts | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for name, choices in (("better", tuple(_MERITS)), ("score", _SCORES)):
            check_choice(name, getattr(self, name), choices)
        if self.parts is not None and self.parts.by != "any" and (self.parts.by == "group") != self.grouped:
            raise InputError(f"`parts` (by {self.parts.by!r}) must suit `grouped` (={self.grouped})")

    def merit(self, value: float) -> float:
        """Returns a number that is larger for better values.

        Example::

            >>> max([0.7, 0.9, 1.2], key=METRICS["calibration"].merit)
            0.9
        """
        return _MERITS[self.better](value)


METRICS: Mapping[str, Metric] = {
    "auc": Metric(auc, "AUC", better="higher", score="ranking", parts=AUC),
    "log_loss": Metric(log_loss, "log loss", better="lower", score="probability", parts=LOG_LOSS),
    "normalized_entropy": Metric(
        normalized_entropy, "normalized entropy", better="lower", score="probability", parts=NORMALIZED_ENTROPY
    ),
    "calibration": Metric(calibration, "calibration", better="one", score="probability", parts=CALIBRATION),
    "gauc": Metric(gauc, "GAUC", better="higher", score="ranking", grouped=True, parts=GAUC),
    "rmse": Metric(rmse, "RMSE", better="lower", score="value", parts=RMSE),
    "mae": Metric(mae, "MAE", better="lower", score="value", parts=MAE),
    "gini": Metric(gini, "normalised Gini", better="higher", score="value", parts=GINI),
    "lift": Metric(lift, "lift of the first decile", better="higher", score="value", parts=LIFT),
    "value_calibration": Metric(
        value_calibration, "calibration of sums", better="one", score="value", parts=VALUE_CALIBRATION
    ),
    "pinball": Metric(pinball, "pinball loss", better="lower", score="quantile", parts=PINBALL),
    "class_accuracy": Metric(class_accuracy, "accuracy", better="higher", score="class", parts=ACCURACY),
    "class_log_loss": Metric(
        class_log_loss, "log loss of classes", better="lower", score="class", parts=CLASS_LOG_LOSS
    ),
    "class_mae": Metric(class_mae, "MAE of classes", better="lower", score="grade", parts=CLASS_MAE),
}


@checked
def measured_as(name: str, metric: Metric, space: str) -> dict[str, str]:
    """Returns the names, with titles, under which :class:`MultiTaskMetrics` measures a metric in a sample space.

    A ranking metric has two values where the previous step happened: one ranks the rows by ``p_t / p_{t-1}``, the
    other by ``p_t``. They can order two models differently, so each name says which it is.

    Args:
        name: name of the metric.
        metric: the metric.
        space: sample space, one of ``TaskForest.spaces``.

    Example::

        >>> measured_as("auc", METRICS["auc"], "after click")
        {'conditional_auc': 'conditional AUC', 'marginal_auc': 'marginal AUC'}
        >>> measured_as("auc", METRICS["auc"], "impressions")
        {'auc': 'AUC'}
        >>> measured_as("log_loss", METRICS["log_loss"], "after click")
        {'log_loss': 'log loss'}
    """
    if space == "impressions" or metric.score != "ranking":
        return {name: metric.title}
    return {f"{score}_{name}": f"{score} {metric.title}" for score in ("conditional", "marginal")}


@checked
def spaces_of(metric: Metric, tasks: TaskForest, name: str) -> tuple[str, ...]:
    """Returns the sample spaces in which a metric is measured for the task ``name``; none if it is for another kind.

    Example::

        >>> from torchrec_mtl.kinds import Quantile
        >>> from torchrec_mtl.tasks import Task
        >>> tasks = TaskForest(Task("click"), Task("dwell", after="click", kind=Quantile((0.5, 0.9))))
        >>> spaces_of(METRICS["pinball"], tasks, "dwell"), spaces_of(METRICS["auc"], tasks, "dwell")
        (('after click',), ())
    """
    kind, spaces = tasks.tasks[tasks.index(name)].kind, tasks.spaces(name)
    if metric.score not in kind.scores:
        return ()
    return spaces if kind.has_mean else spaces[-1:]


AUCS = (*measured_as("auc", METRICS["auc"], "impressions"), *measured_as("auc", METRICS["auc"], "after a step"))
"""The names under which AUCs are measured; RelaImpr and Gain are defined for them."""


@checked
def find_metric(name: str, known: Mapping[str, Metric], argument: str, with_groups: bool) -> Metric:
    """Returns the metric called ``name``.

    Args:
        name: name to look up.
        known: all known metrics by name.
        argument: name of the argument that ``name`` was given for, used in the error message.
        with_groups: whether the rows to measure have groups.

    Raises:
        InputError: if no metric has this name, or it needs groups and the rows have none.

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
