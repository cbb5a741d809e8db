"""What all rows of a source say: which label needs which, and the times by which rows are split."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np

from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.table.columns import read_values
from torchrec_mtl.data.table.declaration import ByTime
from torchrec_mtl.data.table.formats import SourceFile
from torchrec_mtl.data.table.infer.columns import Column
from torchrec_mtl.data.table.sources import read_parts
from torchrec_mtl.errors import InputError
from torchrec_mtl.tasks import Task, TaskForest

_MINUTE = 60 * 10**6  # microseconds


@dataclass
class AllRows:
    """What all rows say of the few columns that decide how the table is used.

    Args:
        labels: label columns.
        time: column of times, if there is one.
        group: column of groups, if there is one.
    """

    labels: Sequence[Column]
    time: Column | None
    group: Column | None
    num_rows: int = 0
    minutes: Counter[int] = field(default_factory=Counter)
    without: Array = field(init=False)  # [T, T] rows in which the first happened without the second
    happened: Array = field(init=False)  # [T] rows in which it happened

    def read(self, files: Sequence[SourceFile], progress: Callable[[str, int, float], None]) -> None:
        names = [each.name for each in (*self.labels, self.time, self.group) if each is not None]
        self.without = np.zeros((len(self.labels), len(self.labels)), np.int64)
        self.happened = np.zeros(len(self.labels), np.int64)
        size, total = 0, sum(file.size for file in files)
        for file in files:
            for part in read_parts(file, names):
                columns = [read_values(part, label.name, "label").flat.fill_null(0) for label in self.labels]
                happened = np.stack([np.asarray(column.to_numpy(zero_copy_only=False)) for column in columns], axis=1)
                self.happened += happened.sum(axis=0).astype(np.int64)
                self.without += (happened.T @ (1 - happened)).astype(np.int64)
                if self.time is not None:
                    times = read_values(part, self.time.name, "time", unit=self.time.unit).flat.drop_null()
                    minutes, counts = np.unique(times.to_numpy() // _MINUTE, return_counts=True)
                    self.minutes.update(dict(zip(minutes.tolist(), counts.tolist(), strict=True)))
                self.num_rows += part.batch.num_rows
                progress("labels and times", self.num_rows, size / total)
            size += file.size

    def forest(self, source: str) -> tuple[TaskForest, list[str]]:
        """The tasks, each after the rarest that always happened with it, and columns that are the same in all rows."""
        constant = [
            each.name for each, rows in zip(self.labels, self.happened, strict=True) if rows in (0, self.num_rows)
        ]
        order = [place for place, each in enumerate(self.labels) if each.name not in constant]
        order.sort(key=lambda place: (-self.happened[place], self.labels[place].event or 0, place))
        if not order:
            raise InputError(f"{source}: label columns {constant} must have 0 in some rows and 1 in others")
        made: list[Task] = []
        for number, place in enumerate(order):
            needed = [before for before in order[:number] if not self.without[place, before]]
            after = self.labels[needed[-1]].name if needed else None
            made.append(Task(self.labels[place].name, after=after))
        return TaskForest(*made), constant


def time_split(minutes: Counter[int]) -> tuple[ByTime, str] | None:
    """Splits at times near 80 % and 90 % of the rows, at midnight if that is near enough; None if there are too few."""
    known = np.array(sorted(minutes), np.int64)
    counts = np.array([minutes[minute] for minute in known.tolist()], np.int64)
    for step, tolerance in ((1440, 0.1), (60, 0.1), (1, 1.0)):
        starts, first = np.unique(known // step * step, return_index=True)
        shares = np.concatenate([[0], counts.cumsum()])[first] / max(1, counts.sum())  # of rows before each start
        if len(starts) < 3:
            continue
        valid = 1 + int(np.abs(shares[1:-1] - 0.8).argmin())
        test = valid + 1 + int(np.abs(shares[valid + 1 :] - 0.9).argmin())
        if abs(shares[valid] - 0.8) > tolerance or abs(shares[test] - 0.9) > tolerance:
            continue
        try:
            edges = [datetime(1970, 1, 1) + timedelta(minutes=int(starts[place])) for place in (valid, test)]
        except OverflowError:
            return None
        written = [f"{each:%Y-%m-%d}" if step == 1440 else each.isoformat(timespec="minutes") for each in edges]
        parts = np.diff([0, shares[valid], shares[test], 1])
        return ByTime(written[0], written[1]), f"{', '.join(f'{100 * part:.0f}' for part in parts)} % of the rows"
    return None
