"""What is known of labels that arrive late, from the times at which rows are seen."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.table.declaration import Table
from torchrec_mtl.data.table.delays import NEVER, Delay, known_column, prepared_tasks
from torchrec_mtl.data.table.rows import TypedRows
from torchrec_mtl.errors import InputError
from torchrec_mtl.tasks import TaskForest, delayed_task, real_negative_task

Copies = tuple[Array, dict[str, float | Array]]  # positions of rows [C], and the columns in which their copies differ


@dataclass(frozen=True)
class Clock:
    """The times from which labels are seen, in microseconds since 1970.

    Args:
        first: time of the first row.
        end: time of the last training row, or ``as_of`` if that is earlier.
        as_of: time from which training rows are seen.
        last: time from which all others are seen: the largest time of a row or a label, or ``as_of`` if that is later.
    """

    first: int
    end: int
    as_of: int
    last: int


def as_known(
    delays: Sequence[Delay],
    tasks: TaskForest,
    clock: Clock,
    *,
    time: Array,
    times: Mapping[str, Array],
    labels: Mapping[str, Array],
    training: Array,
) -> tuple[dict[str, Array], dict[str, Copies]]:
    """Returns what is known of the labels, and what stands there once more.

    Args:
        delays, tasks: see `Table`.
        clock: the times from which labels are seen.
        time: time of the rows [N].
        times: time of each delayed task [N], see `read_label_times`.
        labels: raw label and weight columns [N].
        training: whether the row is a training row, bool [N].

    Returns:
        Label and weight columns of `prepared_tasks`, float32 [N]; then the copies for each corrected task.

    Example::

        >>> from torchrec_mtl.tasks import TaskChain
        >>> delay = Delay("buy", time="bought_at", window="7d", policy="correct", wait="1d")
        >>> day = 24 * 3600 * 10**6
        >>> rows = {"time": day * np.array([8, 8, 8, 19]), "times": {"buy": np.array([8 * day, 12 * day, NEVER, NEVER])}}
        >>> rows |= {"labels": {"buy": np.array([1, 1, 0, 0], np.float32)}, "training": np.full(4, True)}
        >>> known, copies = as_known([delay], TaskChain(["buy"]), Clock(0, *[20 * day] * 3), **rows)
        >>> known["buy"].tolist(), known["buy_known"].tolist()  # the second was not known after a day
        ([1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0])
        >>> copies["buy"][0].tolist(), known["buy_real_negative_known"].tolist()
        ([1], [0.0, 1.0, 1.0, 0.0])
    """  # noqa: E501  (the rows)
    now = np.where(training, clock.as_of, clock.last)
    by_task, everywhere = {each.task: each for each in delays}, np.full(len(time), True)
    prepared = {task.name: task for task in prepared_tasks(tasks, delays).tasks}
    known: dict[str, Array] = {}
    copies: dict[str, Copies] = {}
    counted: dict[str | None, Array] = {}  # where a task happened in time, as those did that it needs

    def put(name: str, label: Array, weight: Array) -> None:
        known[prepared[name].label_column] = label.astype(np.float32)
        known[prepared[name].weight_column or ""] = weight.astype(np.float32)

    for task in tasks.tasks:
        given = np.ones(len(time), np.float32) if task.weight_column is None else labels[task.weight_column]
        if task.name not in by_task:
            known[task.label_column] = labels[task.label_column]
            known[prepared[task.name].weight_column or ""] = given
            continue
        delay, at = by_task[task.name], times[task.name]
        happens = counted.get(task.after, everywhere) & (at - time <= delay.window_us)
        counted[task.name] = happens | (given == 0)
        final = time + delay.window_us <= now
        if delay.policy == "mask":
            put(task.name, happens & (at <= now), given * final)
            continue
        late, begin = happens & (at - time > delay.wait_us), clock.first + delay.window_us
        read = (time + delay.wait_us >= begin) & (time + delay.wait_us <= clock.end)
        early = happens & ~late
        put(task.name, np.where(training, early & read, happens & (at <= now)), given * np.where(training, read, final))
        put(delayed_task(task.name), late & (at <= now), given * final)
        put(real_negative_task(task.name), ~happens, given * (final & ~early))
        copied = np.flatnonzero(training & late & (at >= begin) & (at <= clock.end))
        changed: dict[str, float | Array] = {each.weight_column or "": 0.0 for each in prepared.values()}
        changed |= {task.label_column: 1.0, prepared[task.name].weight_column or "": given[copied]}
        copies[task.name] = copied, changed
    known.pop("", None)
    return known, copies


class LateLabels:
    """The late labels of a table, part by part: first `look` at all rows, then ask for `known`.

    Args:
        table: the declaration; without delays, labels stay as they are.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self._first, self._last_training, self._last = NEVER, -NEVER, -NEVER
        self._counts: dict[str, Counter[str]] = {each.task: Counter() for each in table.delays}

    def look(self, rows: TypedRows, training: Array) -> None:
        """Notes the times of rows and labels."""
        if not self.table.delays or not len(rows):
            return
        assert rows.time is not None
        happened = [times[times != NEVER] for times in rows.label_times.values()]
        self._first = min(self._first, int(rows.time.min()))
        self._last = max(int(each.max()) for each in (np.array([self._last]), rows.time, *happened) if len(each))
        self._last_training = max(self._last_training, int(rows.time[training].max(initial=-NEVER)))

    def merge(self, other: "LateLabels") -> None:
        """Adds what other parts of the same table have noted and counted."""
        self._first, self._last = min(self._first, other._first), max(self._last, other._last)
        self._last_training = max(self._last_training, other._last_training)
        for task, counts in other._counts.items():
            self._counts[task] += counts

    @property
    def num_copies(self) -> int:
        """Number of rows that stand there once more, of those asked for so far."""
        return sum(counts["copied"] for counts in self._counts.values())

    def check(self) -> None:
        """Raises an `InputError` if no label of a training row is old enough."""
        for each in self.table.delays:
            mask = each.policy == "mask"
            if (self._clock.as_of if mask else self._clock.end) < self._first + each.window_us:
                end = "`as_of`" if mask else "`as_of`, or to the last training row,"
                rule = f"must be at least `window` (={each.window!r}) of the delay of {each.task!r}: no label is known"
                raise InputError(f"the time from the first row to {end} {rule}")

    @property
    def _clock(self) -> Clock:
        as_of = self._last if self.table.as_of_us is None else self.table.as_of_us
        return Clock(self._first, min(as_of, self._last_training), as_of, max(as_of, self._last))

    def known(self, rows: TypedRows, training: Array) -> tuple[dict[str, Array], dict[str, Copies]]:
        """Returns the label and weight columns of rows, and which stand there once more: see `as_known`."""
        table = self.table
        if not table.delays:
            return rows.labels, {}
        assert rows.time is not None
        seen = {"time": rows.time, "times": rows.label_times, "labels": rows.labels, "training": training}
        known, copies = as_known(table.delays, table.tasks, self._clock, **seen)  # type: ignore[arg-type]
        for each in table.delays:
            counts, weights, at = self._counts[each.task], known[known_column(each.task)], rows.label_times[each.task]
            for of, chosen in (("training", training), ("other", ~training)):
                counts[of] += int(chosen.sum())
                counts[f"masked {of}"] += int((weights[chosen] == 0).sum())
            counts["late"] += int(((at != NEVER) & (at - rows.time > each.window_us)).sum())
            if each.task in copies:
                positions, changed = copies[each.task]
                counts["copied"] += len(positions)
                if table.time not in table.names:
                    changed[table.time or ""] = at[positions]
        return known, copies

    def findings(self) -> list[str]:
        """What was done with late labels, a line a task."""
        return [
            f"labels of {task}: {counts['masked training']:,} of {counts['training']:,} training rows are masked, and "
            f"{counts['masked other']:,} of {counts['other']:,} others; {counts['late']:,} came after the window and "
            f"count as 0; {counts['copied']:,} training rows stand there once more"
            for task, counts in self._counts.items()
        ]


def with_copies(rows: pl.DataFrame, splits: Array, copies: Mapping[str, Copies]) -> tuple[pl.DataFrame, Array]:
    """Returns rows with their copies at the end, each with the time at which it became known, and their splits."""
    whole, of_rows = [rows], [splits]
    for positions, changed in copies.values():
        values = [
            pl.Series(name, np.broadcast_to(value, len(positions))).cast(rows.schema[name])
            for name, value in changed.items()
        ]
        whole.append(rows[positions].with_columns(values))
        of_rows.append(splits[positions])
    return pl.concat(whole), np.concatenate(of_rows)
