"""The folder of days: one folder for each published day, whole or absent, and the name of the newest."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

from torchrec_mtl.data.table.drift import FieldCounts
from torchrec_mtl.errors import InputError
from torchrec_mtl.files import publish_folder, read_json, to_json, write_whole
from torchrec_mtl.training.evaluation import Measurements
from torchrec_mtl.training.result import with_nan

DAYS_FOLDER = "days"  # of a run
NEWEST = "newest"  # link to the folder of the last published day
DAY_FILE = "day.json"
_REFUSED = ".refused.json"  # ends the name of the report of a day that was not published


@dataclass(frozen=True)
class DayReport:
    """What is known of a day.

    Args:
        day: the day, UTC.
        num_rows: number of its rows.
        scored: figures ``{task, space, metric, value}`` with the model of the day before; empty for the first day.
        fields: counts of each field, with the encoders of the day before.
        stability: population stability index of each field against the days before; empty for the first day.
        new_ids: number of values that each vocabulary took up.
        left_out: number of values for which a vocabulary has no row left.
        trained: counts of each field over all days up to this one.
        loss: mean loss in training; None if the day was not trained on.
        broken: bounds that the figures break; with one, the day is not published.
    """

    day: date
    num_rows: int
    scored: Measurements = field(default_factory=list)
    fields: Mapping[str, FieldCounts] = field(default_factory=dict)
    stability: Mapping[str, float] = field(default_factory=dict)
    new_ids: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    trained: Mapping[str, FieldCounts] = field(default_factory=dict)
    loss: float | None = None
    broken: Sequence[str] = ()

    def to_json(self) -> str:
        """Returns the report as JSON."""
        return to_json({**asdict(self), "day": str(self.day)}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, file: Path) -> "DayReport":
        """Reads a report.

        Raises:
            InputError: if the file is missing or damaged.
        """
        content: dict[str, Any] = read_json(file)
        try:
            content |= {"day": date.fromisoformat(content["day"]), "scored": with_nan(content["scored"])}
            for name in ("fields", "trained"):
                content[name] = {key: FieldCounts(**counts) for key, counts in content[name].items()}
            return cls(**content)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{file}: must be the report of a day ({error!r})") from error


class DaysFolder:
    """The days of a run; one process at a time writes into it.

    Args:
        run: folder of the run.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / DAYS_FOLDER

    def clear(self) -> None:
        """Makes the folder, removes what a killed job left, and names the newest day again."""
        self.path.mkdir(exist_ok=True)
        for left in self.path.glob(".*.partial"):
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        days = self.published()
        for day in days:
            self._refused(day).unlink(missing_ok=True)
        if days:
            self._name_newest(days[-1])

    def published(self) -> list[date]:
        """The published days, in order."""
        found = []
        for path in self.path.iterdir() if self.path.is_dir() else ():
            try:
                found.append(date.fromisoformat(path.name))
            except ValueError:
                continue
        return sorted(found)

    def of(self, day: date) -> Path:
        """The folder of a published day."""
        return self.path / str(day)

    def report(self, day: date) -> DayReport:
        """The report of a published day."""
        return DayReport.load(self.of(day) / DAY_FILE)

    def reports(self) -> list[DayReport]:
        """The reports of all days, in order, those that were not published too."""
        refused = [DayReport.load(file) for file in self.path.glob(f"*{_REFUSED}")]
        return sorted([*(self.report(day) for day in self.published()), *refused], key=lambda report: report.day)

    def partial(self, day: date) -> Path:
        """The folder in which the day is made."""
        return self.path / f".{day}.partial"

    def publish(self, report: DayReport) -> None:
        """Gives the folder of the day its name, once its report is in it, and makes it the newest."""
        partial = self.partial(report.day)
        write_whole(partial / DAY_FILE, report.to_json())
        publish_folder(partial, self.of(report.day))
        self._refused(report.day).unlink(missing_ok=True)
        self._name_newest(report.day)

    def refuse(self, report: DayReport) -> None:
        """Keeps the report of a day that is not published, and removes what was made of it."""
        write_whole(self._refused(report.day), report.to_json())
        shutil.rmtree(self.partial(report.day))

    def _refused(self, day: date) -> Path:
        return self.path / f"{day}{_REFUSED}"

    def _name_newest(self, day: date) -> None:
        partial = self.path / f".{NEWEST}.partial"
        partial.unlink(missing_ok=True)
        partial.symlink_to(str(day))
        os.replace(partial, self.path / NEWEST)


def parse_days(text: str) -> list[date]:
    """Returns the days of ``2026-11-01..2026-11-07`` or of a single day.

    Raises:
        InputError: if the text has another form, or the last day is before the first.

    Example::

        >>> [str(day) for day in parse_days("2026-11-30..2026-12-01")]
        ['2026-11-30', '2026-12-01']
    """
    first, _, last = text.partition("..")
    try:
        start, stop = date.fromisoformat(first), date.fromisoformat(last if ".." in text else first)
    except ValueError:
        raise InputError(f"`days` (={text!r}) must be a day such as 2026-11-01, or 2026-11-01..2026-11-07") from None
    if stop < start:
        raise InputError(f"`days` (={text!r}) must not end before its first day")
    return [start + timedelta(days=number) for number in range((stop - start).days + 1)]


def days_to_do(wanted: Sequence[date], published: Sequence[date], skipped: Sequence[date]) -> list[date]:
    """Returns the days that are to be trained on: those after the last published one, without the skipped ones.

    Raises:
        InputError: if a day between the last published one and these would be left out, or none is left.

    Example::

        >>> days_to_do(parse_days("2026-11-01..2026-11-03"), parse_days("2026-11-01"), [])
        [datetime.date(2026, 11, 2), datetime.date(2026, 11, 3)]
    """
    if not published:
        first = [day for day in wanted if day not in skipped]
        if not first:
            raise InputError(f"`skip_days` must leave a day of `days` (={wanted[0]}..{wanted[-1]})")
        return first
    to_do = [day for day in wanted if day > published[-1]]
    following = published[-1] + timedelta(days=1)
    while to_do and following < to_do[0]:
        if following not in skipped:
            rule = f"must begin at {following}, the day after the newest, or earlier; `skip_days` leaves a day out"
            raise InputError(f"`days` (={wanted[0]}..{wanted[-1]}) {rule}")
        following += timedelta(days=1)
    return [day for day in to_do if day not in skipped]
