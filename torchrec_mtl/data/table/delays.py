"""Labels that arrive late, as declared: masked while their rows are young, or corrected as in ES-DFM.

ES-DFM is Yang et al., "Capturing Delayed Feedback in Conversion Rate Prediction via Elapsed-Time Sampling", AAAI 2021.
"""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import datetime, timedelta
from typing import Literal

import numpy as np

from torchrec_mtl.argument_types import check_fields
from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.table.columns import read_column
from torchrec_mtl.data.table.ids import duration
from torchrec_mtl.data.table.parts import Part
from torchrec_mtl.errors import InputError, check_choice
from torchrec_mtl.tasks import Task, TaskForest, delayed_task, real_negative_task

NEVER = 2**62  # microseconds: later than any time, and far from overflow


@dataclass(frozen=True)
class Delay:
    """When a task happens after its row, and what is made of rows that are too young to know.

    A task counts if it happens within ``window`` of its row; if it happens later, its label is 0. Whether a row is
    older than ``window`` is seen from `Table`'s ``as_of`` for training rows, and from the end of the data for the
    others, which are never judged by a label that is not final.

    Args:
        task: name of the task.
        time: column with the time at which the task happened, missing where it did not.
        window: attribution window, from the row's time on, such as "7d", "12h" or "15m".
        policy: "mask" for weight 0 where a row is younger than ``window``; "correct" for the rows of ES-DFM, which
            `torchrec_mtl.losses.DelayedLoss` trains on.
        wait: how long after its row a label is read first, under "correct".

    Under "correct", a training row has the label that it had after ``wait``, and stands there once more, with label 1,
    for a task that happened after ``wait`` and until ``as_of``. Such a copy has weight 0 for all other tasks, and the
    time at which it became known, that of the task. Two further tasks, ``<task>_delayed`` and ``<task>_real_negative``,
    are what the loss makes its weights of; their labels are known for rows older than ``window``. Both a first label
    and a copy count if they came at least ``window`` after the first row: copies before that would be too few, as those
    of the last rows still are to come.

    Raises:
        InputError: if a duration cannot be read, ``wait`` is not below ``window``, or it is given to "mask".

    Example::

        >>> Delay("buy", time="bought_at", window="7d", policy="correct", wait="1h").wait_us
        3600000000
    """

    task: str
    _: KW_ONLY
    time: str
    window: str
    policy: Literal["mask", "correct"] = "mask"
    wait: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        of = f" of the delay of `{self.task}"
        check_choice(f"policy`{of}", self.policy, ("mask", "correct"))
        duration(f"window`{of}", self.window)
        if (self.wait is None) != (self.policy == "mask"):
            raise InputError(f"`wait`{of}` (={self.wait!r}) must be given for policy 'correct', and for no other")
        if self.wait is not None and duration(f"wait`{of}", self.wait) >= self.window_us:
            raise InputError(f"`wait`{of}` (={self.wait!r}) must be shorter than `window` (={self.window!r})")

    @property
    def window_us(self) -> int:
        """``window`` in microseconds."""
        return duration("window", self.window)

    @property
    def wait_us(self) -> int:
        """``wait`` in microseconds, 0 if there is none."""
        return 0 if self.wait is None else duration("wait", self.wait)


def check_delays(delays: Sequence[Delay], tasks: TaskForest) -> None:
    """Raises an `InputError` if the delays do not fit the tasks."""
    by_task = {each.task: each for each in delays}
    if len(by_task) < len(delays):
        raise InputError(f"`delays` must have one a task, not {[each.task for each in delays]}")
    for each in delays:
        if not tasks.tasks[tasks.index(each.task)].is_binary:
            raise InputError(f"delay of {each.task!r} must be of a task that happens or not, not of a value")
        for name in (task.name for task in tasks.tasks if task.after == each.task):
            if each.policy == "correct":
                raise InputError(f"delay of {each.task!r} must have policy 'mask', since {name!r} needs it")
            if name not in by_task:
                raise InputError(f"`delays` must have one of {name!r}, since {each.task!r}, which it needs, has one")


def prepared_tasks(tasks: TaskForest, delays: Sequence[Delay]) -> TaskForest:
    """Returns the tasks of the prepared data: with weights of the labels, and with what the correction needs.

    Example::

        >>> from torchrec_mtl.tasks import TaskChain
        >>> delay = Delay("buy", time="bought_at", window="7d", policy="correct", wait="1h")
        >>> print(prepared_tasks(TaskChain(["click", "buy"]), [delay]))
        click -> (buy, buy_delayed), buy_real_negative
    """
    late = {each.task for each in delays}
    corrected = [each.task for each in delays if each.policy == "correct"]
    prepared = [
        Task(each.name, after=each.after, label_column=each.label_column, weight_column=known_column(each.name))
        if each.name in late or corrected
        else each
        for each in tasks.tasks
    ]
    values = [each for each in prepared if not each.is_binary]
    prepared = [each for each in prepared if each.is_binary]
    for name in corrected:
        after = tasks.tasks[tasks.index(name)].after
        prepared += [
            Task(delayed_task(name), after=after, weight_column=known_column(delayed_task(name))),
            Task(real_negative_task(name), weight_column=known_column(real_negative_task(name))),
        ]
    return TaskForest(*prepared, *values)


def known_column(task: str) -> str:
    """The name of the prepared column with the weights of a task's labels."""
    return f"{task}_known"


def read_label_times(
    delays: Sequence[Delay], tasks: TaskForest, part: Part, time: Array, labels: Mapping[str, Array], unit: str | None
) -> dict[str, Array]:
    """Returns the time of each delayed task, int64 [N], `NEVER` where it did not happen, and marks the bad rows.

    Args:
        delays, tasks: see `Table`.
        part: the rows.
        time: time of the rows [N].
        labels: label and weight columns [N].
        unit: unit of times that are integers.
    """
    times: dict[str, Array] = {}
    columns = {each.task: each.time for each in delays}
    for task in tasks.tasks:
        if task.name not in columns:
            continue
        column = columns[task.name]
        found = read_column(part, column, "time", unit=unit)
        missing = found.is_null().to_numpy(zero_copy_only=False)
        at = found.fill_null(NEVER).to_numpy(zero_copy_only=False)
        masked = np.zeros(len(at), bool) if task.weight_column is None else labels[task.weight_column] == 0
        happened = (labels[task.label_column] == 1) & ~masked

        def reject(bad: Array, rule: str, column: str = column, at: Array = at) -> None:
            part.reject(column, np.flatnonzero(bad), rule, lambda row: None if at[row] == NEVER else _iso(int(at[row])))

        reject(happened & missing, f"time ({{}}) must be given, since {task.name!r} happened")
        reject(~happened & ~masked & ~missing, f"time ({{}}) must be missing, since {task.name!r} did not happen")
        reject(happened & (at < time), "time ({}) must not be before that of the row")
        if task.after in times:
            parent = times[task.after]  # unknown where the parent's label is masked
            reject(
                happened & (at < parent) & (parent != NEVER), f"time ({{}}) must not be before that of {task.after!r}"
            )
        times[task.name] = np.where(happened, at, NEVER)
    return times


def _iso(microseconds: int) -> str:
    return (datetime(1970, 1, 1) + timedelta(microseconds=microseconds)).isoformat()
