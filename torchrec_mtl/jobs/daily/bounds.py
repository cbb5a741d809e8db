"""The bounds within which a day's figures must lie for its model to be published."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torchrec_mtl.errors import InputError, not_one_of
from torchrec_mtl.tasks import TaskForest
from torchrec_mtl.training.evaluation import Measurements

LAST_DAYS = 7  # whose mean AUC a day's is compared with
_KINDS = ("least_auc", "most_auc_fall", "most_calibration_error", "most_normalized_entropy")


@dataclass(frozen=True)
class Bounds:
    """Bounds of a day's figures over all impressions, as the model of the day before has them.

    Args:
        of: the bounds: kind and task, and the number. The kinds are ``least_auc``; ``most_auc_fall``, by how much AUC
            may be below its mean over the last 7 published days that were scored; ``most_calibration_error``, of
            ``|calibration - 1|``; and ``most_normalized_entropy``. Without a task, a bound is every task's that has
            none itself.

    Example::

        >>> bounds = Bounds.parse("least_auc=0.6,least_auc.buy=0.7,most_calibration_error=0.2")
        >>> row = {"space": "impressions", "metric": "auc", "value": 0.65}
        >>> scored = [{"task": "click", **row}, {"task": "buy", **row}]
        >>> scored += [{**each, "metric": "calibration", "value": 1.1} for each in scored]
        >>> bounds.broken(scored, [])
        ['least_auc.buy=0.7 (it is 0.6500)']
    """

    of: Mapping[tuple[str, str | None], float] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Bounds":
        """Returns the bounds that a command line gives: ``kind=number`` or ``kind.task=number``, with commas between.

        Raises:
            InputError: if the text has another form, or a kind is unknown.
        """
        bounds: dict[tuple[str, str | None], float] = {}
        for each in filter(None, text.split(",")):
            name, equals, number = each.partition("=")
            kind, dot, task = name.partition(".")
            if kind not in _KINDS:
                raise InputError(f"`bounds`: {not_one_of('kind', kind, _KINDS)}")
            try:
                value = float(number)
            except ValueError:
                value = math.nan
            if not equals or not math.isfinite(value) or bool(dot) != bool(task):
                raise InputError(f"`bounds`: {each!r} must have the form kind=number or kind.task=number")
            bounds[kind, task or None] = value
        return cls(bounds)

    def check(self, tasks: TaskForest) -> None:
        """Raises `InputError` if a bound is of a task that there is not, or of a value."""
        for kind, task in self.of:
            if task is not None and not tasks.tasks[tasks.index(task)].is_binary:
                raise InputError(f"`bounds`: {kind}.{task} must be of a task that happens or not, not of a value")

    def broken(self, scored: Measurements, before: Sequence[Measurements]) -> list[str]:
        """Returns the bounds that a day's figures break, with the figures.

        A figure that is undefined, such as AUC without a positive row, breaks its bound. Without a day before that was
        scored, an AUC cannot have fallen.

        Args:
            scored: the day's figures.
            before: figures of the published days before, oldest first.
        """
        figures, earlier = _figures(scored), [_figures(each) for each in before[-LAST_DAYS:]]
        tasks = dict.fromkeys(row["task"] for row in scored)
        broken = []
        for kind, metric in zip(_KINDS, ("auc", "auc", "calibration", "normalized_entropy"), strict=True):
            for task in tasks:
                bound = self.of.get((kind, task), self.of.get((kind, None)))
                if bound is None:
                    continue
                if any((task, of_value) in figures for of_value in ("rmse", "pinball", "class_log_loss")):
                    continue  # a value, which none of the bounds is of
                found = figures.get((task, metric), math.nan)
                if kind == "most_auc_fall":
                    known = [
                        each[task, metric] for each in earlier if not math.isnan(each.get((task, metric), math.nan))
                    ]
                    found = sum(known) / len(known) - found if known else 0.0
                elif kind == "most_calibration_error":
                    found = abs(found - 1)
                if not (found >= bound if kind == "least_auc" else found <= bound):  # NaN is neither
                    what = "undefined" if math.isnan(found) else f"{found:.4f}"
                    broken.append(f"{kind}.{task}={bound} (it is {what})")
        return broken


def _figures(rows: Measurements) -> dict[tuple[str, str], float]:
    return {(row["task"], row["metric"]): row["value"] for row in rows if row["space"] == "impressions"}
