"""Trains a model on one day after the other, and publishes each day whose figures lie within the stated bounds."""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from torchrec_mtl.data import Schema, Split, read_split
from torchrec_mtl.data.table import Table, TableEncoder
from torchrec_mtl.data.table.days import check_days, count_day, fit_day, write_day
from torchrec_mtl.data.table.drift import added, population_stability
from torchrec_mtl.files import make_folder, to_json, write_whole
from torchrec_mtl.jobs.daily.bounds import LAST_DAYS, Bounds
from torchrec_mtl.jobs.daily.folder import NEWEST, DayReport, DaysFolder, days_to_do
from torchrec_mtl.jobs.daily.one_day import DayModel
from torchrec_mtl.jobs.daily.report import summary, write_days
from torchrec_mtl.jobs.environment import require_extra
from torchrec_mtl.jobs.folder_lock import folder_lock
from torchrec_mtl.jobs.loading import DATA_FOLDER, record_data
from torchrec_mtl.jobs.run_config import RunConfig
from torchrec_mtl.jobs.run_folder import CONFIG_FILE, open_run
from torchrec_mtl.metrics import Metric
from torchrec_mtl.training.faults import StopRequest
from torchrec_mtl.training.hang import TIMEOUT, longest_wait, watched
from torchrec_mtl.training.process_group import default_device, on_every_rank, on_first_rank, process_group

BEYOND_BOUNDS = 3  # status of a call that did not publish a day, as its figures break a bound
_SCORED, _TRAINED = ".scored", ".trained"  # the day's rows with the encoders of the day before, and with the new ones


@dataclass(frozen=True)
class _Prepared:
    """A day that is ready: folder of the day before, of its rows as scored and as trained on, and its report so far."""

    before: Path | None
    scored: Path | None  # None on the first day
    trained: Path
    report: DayReport


@dataclass(frozen=True)
class DailyRun:
    """The run of a model over days.

    Args:
        config: settings of the model and its training.
        table: the declared table.
        directory: folder of the run.
        bounds: bounds of the figures of a day that is published.
        metrics: metrics that are measured, by name.
        timeout: longest time without a step after which a process leaves its stack and ends, see `watched`.

    Raises:
        InputError: if the rows of the table have no day, or a bound is of a task that there is not.
    """

    config: RunConfig
    table: Table
    directory: Path
    bounds: Bounds
    metrics: Mapping[str, Metric]
    timeout: timedelta = TIMEOUT

    def __post_init__(self) -> None:
        check_days(self.table)
        self.bounds.check(self.table.tasks)

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """The settings that all days of the run share, by model."""
        declared = hashlib.sha256(repr(self.table).encode()).hexdigest()[:16]
        data = f"every day of {self.table.name}, declaration {declared}"
        return {self.config.name: {**self.config.as_dict(), "data": data}}

    def run(self, days: Sequence[date], skipped: Sequence[date]) -> int:
        """Trains on the days that are not published yet, and returns the status: 0, or `BEYOND_BOUNDS`.

        Raises:
            InputError: if the run was made with other settings or another declaration; a day before these is missing
                in it; or a day has no rows.
            TrainingError: if a day cannot be trained on.
        """
        require_extra("report", "matplotlib")
        device, stop = default_device(), StopRequest()
        with stop.listening(), process_group(device, longest_wait(self.timeout)), ExitStack() as held:
            with stop.at_once():
                to_do = on_first_rank(lambda: self._begin(days, skipped, held))
            for number, day in enumerate(to_do):
                report = self._do(day, device, stop)
                if report is None:
                    return 0
                on_first_rank(self._write)
                if dist.get_rank() == 0:
                    print(summary(report, self.table.tasks), flush=True)
                if report.broken:
                    if dist.get_rank() == 0:
                        print(self._refusal(report, to_do[number + 1 :]), flush=True)
                    return BEYOND_BOUNDS
            if not to_do:
                on_first_rank(self._write)  # which a killed job has not done
            if dist.get_rank() == 0:
                done = "" if to_do else "; nothing was left to do"
                print(f"{DaysFolder(self.directory).path / NEWEST}: the newest model{done}", flush=True)
        return 0

    def _begin(self, days: Sequence[date], skipped: Sequence[date], held: ExitStack) -> list[date]:
        make_folder(self.directory, "output")
        held.enter_context(folder_lock(self.directory, "name", "run"))
        open_run(self.directory, self.settings)
        folder = DaysFolder(self.directory)
        folder.clear()
        return days_to_do(days, folder.published(), skipped)

    def _write(self) -> None:
        write_days(DaysFolder(self.directory).reports(), self.table.tasks, self.directory)

    def _do(self, day: date, device: torch.device, stop: StopRequest) -> DayReport | None:
        """Scores, trains on and publishes a day; None if a rank was asked to stop."""
        folder = DaysFolder(self.directory)
        with stop.at_once():
            prepared = on_first_rank(lambda: self._prepare(folder, day))
            trained = on_every_rank(partial(_read, prepared.trained))
            scored = on_every_rank(partial(_read, prepared.scored)) if prepared.scored else None
        with watched(self.directory, self.timeout):
            return self._score_and_train(folder, prepared, trained, scored, device, stop)

    def _score_and_train(
        self,
        folder: DaysFolder,
        prepared: _Prepared,
        trained: Split,
        scored: Split | None,
        device: torch.device,
        stop: StopRequest,
    ) -> DayReport | None:
        report, day = prepared.report, prepared.report.day
        model = DayModel(self.config, day, trained, prepared.before, device)
        if scored is not None:
            report = replace(report, scored=model.score(scored, self.metrics))
            report = on_first_rank(lambda: self._within_bounds(folder, report))
            if report.broken:
                return report
        loss = model.train(trained, folder.partial(day) / self.config.name, stop)
        if loss is None:
            if dist.get_rank() == 0:
                print(f"asked to stop; {day} is not published, and the same command begins with it again", flush=True)
            return None
        report = replace(report, loss=loss)
        on_first_rank(lambda: self._publish(folder, report, prepared.trained))
        return report

    def _prepare(self, folder: DaysFolder, day: date) -> _Prepared:
        """Writes the rows as they are scored, and as they are trained on where new ids have entered."""
        made, days = folder.partial(day), folder.published()
        made.mkdir()
        if not days:
            encoder = fit_day(self.table, day)
            counts = count_day(encoder, day)
            write_day(encoder, day, counts.num_read, made / _TRAINED)
            report = DayReport(day, counts.num_rows, fields=counts.fields, trained=counts.fields)
            return _Prepared(None, None, made / _TRAINED, report)
        before, known = folder.of(days[-1]), folder.report(days[-1]).trained
        encoder = TableEncoder.load(before / DATA_FOLDER)
        counts = count_day(encoder, day)
        extended, left_out = encoder.extended(counts.values)
        report = DayReport(
            day,
            counts.num_rows,
            fields=counts.fields,
            stability={name: population_stability(known[name].bins, each.bins) for name, each in counts.fields.items()},
            new_ids={name: extended.num_known(name) - encoder.num_known(name) for name in left_out},
            left_out=left_out,
            trained=added(known, counts.fields),
        )
        write_day(encoder, day, counts.num_read, made / _SCORED)
        if not any(report.new_ids.values()):
            return _Prepared(before, made / _SCORED, made / _SCORED, report)
        write_day(extended, day, counts.num_read, made / _TRAINED)
        return _Prepared(before, made / _SCORED, made / _TRAINED, report)

    def _within_bounds(self, folder: DaysFolder, report: DayReport) -> DayReport:
        """Returns the report with the bounds that its figures break; with one, the day is put aside."""
        earlier = [folder.report(day).scored for day in folder.published()[-LAST_DAYS:]]
        report = replace(report, broken=self.bounds.broken(report.scored, [scored for scored in earlier if scored]))
        if report.broken:
            folder.refuse(report)
        return report

    def _publish(self, folder: DaysFolder, report: DayReport, trained: Path) -> None:
        made = folder.partial(report.day)
        record_data(made, trained)
        for rows in (_SCORED, _TRAINED):
            shutil.rmtree(made / rows, ignore_errors=True)
        write_whole(made / CONFIG_FILE, to_json(self.settings, indent=2) + "\n")
        folder.publish(report)

    def _refusal(self, report: DayReport, left: Sequence[date]) -> str:
        folder = DaysFolder(self.directory)
        newest = folder.published()[-1]
        waiting = f", and the days from {left[0]} on wait" if left else ""
        return (
            f"{report.day} is not published: {', '.join(report.broken)}; {newest} stays the newest{waiting}. "
            f"Other `bounds`, or `skip_days`, go on"
        )


def _read(folder: Path) -> Split:
    return read_split(folder, "train", Schema.load(folder))
