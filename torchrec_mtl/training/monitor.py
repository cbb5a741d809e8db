"""What a run shows and records: one progress bar an epoch, and scalars for the trackers."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from torchrec_mtl.training.evaluation import Measurements
from torchrec_mtl.training.trackers import JsonLines, TensorBoard, Tracker

SECONDS_BETWEEN_LINES = 30.0  # where nothing can be overwritten


class _Lines:
    """A text stream for tqdm that writes each update as a line."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        if text.strip():
            self.stream.write(text.strip() + "\n")

    def flush(self) -> None:
        self.stream.flush()


def progress_bar(
    description: str, total: int, disable: bool = False, done: int = 0, unit: str = "samples"
) -> "tqdm[Any]":
    """A bar in ``unit`` with the time left; where there is no terminal (a file, a scheduler), a line now and then.

    Args:
        description: what goes on.
        total: number of units at the end.
        disable: whether to show nothing, as ranks other than the first do.
        done: number of units done before.
        unit: name of the units.
    """
    on_terminal = sys.stderr.isatty()
    line = "{desc}: {percentage:.0f}% of {total_fmt} " + unit + ", {rate_fmt}, {remaining} left{postfix}"
    of_lines: dict[str, Any] = {"mininterval": SECONDS_BETWEEN_LINES, "delay": 1e-9, "bar_format": line}
    return tqdm(
        desc=description,
        total=total,
        initial=done,
        unit=f" {unit}",
        unit_scale=True,
        disable=disable,
        file=sys.stderr if on_terminal else _Lines(sys.stderr),
        leave=False,
        **({"mininterval": 0.2} if on_terminal else of_lines),
    )


def print_line(text: str) -> None:
    """Prints a line above the progress bar, if there is one."""
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


class Monitor:
    """Hands the scalars of one run to its trackers, of which ``metrics.jsonl`` is always one.

    Args:
        directory: folder of the run, which is made; None to record nothing, as ranks other than the first do.
        trackers: further trackers; TensorBoard by default.
        settings: settings of the run, by path, for the trackers.
        labels: values that are added to every row, such as model, seed and dataset.
    """

    def __init__(
        self,
        directory: Path | None,
        trackers: Sequence[Tracker] | None = None,
        settings: Mapping[str, Any] | None = None,
        **labels: Any,
    ) -> None:
        self.directory, self.labels, self.settings = directory, labels, settings or {}
        self.trackers: list[Tracker] = []
        if directory is not None:
            self.trackers = [JsonLines(), *([TensorBoard()] if trackers is None else trackers)]
        self._started = False

    def start(self, step: int) -> None:
        """Starts the trackers, for rows after ``step``."""
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
            for tracker in self.trackers:
                tracker.start(self.directory, step, self.labels, self.settings)
        self._started = True

    def scalars(self, step: int, rows: Measurements) -> None:
        """Records rows of ``{split, task, space, metric, value}`` measured at ``step``."""
        for tracker in self.trackers:
            tracker.scalars(step, rows)

    def close(self, finished: bool = True) -> None:
        """Closes the trackers, of a run that is ``finished`` or was stopped."""
        for tracker in self.trackers if self._started else ():
            tracker.close(finished)
