"""What a run shows and records: a progress bar, JSON lines, TensorBoard events."""

import json
import sys
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from torchrec_mtl.errors import InputError
from torchrec_mtl.files import to_json, write_whole


class _Lines:
    """A text stream for tqdm that writes each update as a line, for outputs in which nothing can be overwritten."""

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
    """A bar in ``unit``, redrawn in place on a terminal; elsewhere (a file, a scheduler) a line every few seconds."""
    on_terminal = sys.stderr.isatty()
    return tqdm(
        desc=description,
        total=total,
        initial=done,
        unit=f" {unit}",
        unit_scale=True,
        disable=disable,
        file=sys.stderr if on_terminal else _Lines(sys.stderr),
        mininterval=0.2 if on_terminal else 5.0,
        ncols=None if on_terminal else 100,
        leave=False,
    )


class Monitor:
    """Records the metrics of one run as JSON lines and TensorBoard events.

    Args:
        directory: folder of ``metrics.jsonl`` and the events; None to write nothing, as ranks other than the first do.
        labels: values that are added to every row, such as model, seed and dataset.
    """

    def __init__(self, directory: Path | None, **labels: Any) -> None:
        self.labels = labels
        self.directory = directory

    def start(self, step: int) -> None:
        """Opens the files for rows after ``step``; drops rows of later steps that a former process wrote."""
        if self.directory is None:
            return
        from torch.utils.tensorboard import SummaryWriter  # of the extra "report", which only a run needs

        self.directory.mkdir(parents=True, exist_ok=True)
        file = self.directory / "metrics.jsonl"
        write_whole(file, "".join(_lines_up_to(step, file) if step and file.is_file() else []))
        self._lines = file.open("a")
        self._events = SummaryWriter(str(self.directory), purge_step=step + 1 if step else None)

    def scalars(self, step: int, rows: list[dict[str, Any]]) -> None:
        """Writes rows of ``{split, task, space, metric, value}`` measured at ``step``."""
        if self.directory is None:
            return
        for row in rows:
            self._lines.write(to_json({**self.labels, "step": step, **row}) + "\n")
            names = [row["split"], row["metric"], row.get("task"), row.get("space")]
            self._events.add_scalar("/".join(name for name in names if name), row["value"], step)
        self._lines.flush()

    def close(self) -> None:
        """Closes the files."""
        if self.directory is not None and hasattr(self, "_lines"):
            self._lines.close()
            self._events.close()


def _lines_up_to(step: int, file: Path) -> list[str]:
    """The lines of a former process up to ``step``; the last may have been cut by a kill, and is left out then."""
    kept = []
    for number, line in enumerate(file.read_text(errors="replace").splitlines(keepends=True), start=1):
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, TypeError, LookupError) as error:
            raise InputError(
                f"{file}: line {number} must be a JSON object with `step`, not {line[:60].rstrip()!r}; remove the "
                "line, or the file"
            ) from error
    return kept
