"""Where the scalars of a run go: JSON lines, TensorBoard, MLflow, or a tracker of your own."""

import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torchrec_mtl.errors import InputError
from torchrec_mtl.files import to_json, write_whole
from torchrec_mtl.training.evaluation import Measurements

METRICS_FILE = "metrics.jsonl"
MLFLOW_FILE = "mlflow_run"
LAST = "train/loss"  # of a step's scalars the last that MLflow gets: with it, all are there


class Tracker(Protocol):
    """What records the scalars of one run; ``--trackers package.module:TRACKER`` names the class of yours.

    A run that is resumed starts its trackers again, at the step of its checkpoint: it takes later steps once more.

    Example::

        >>> class Printed:
        ...     def start(self, directory, step, labels, settings):
        ...         print(directory, labels["model"])
        ...     def scalars(self, step, rows):
        ...         print(step, {scalar_name(row): row["value"] for row in rows})
        ...     def close(self, finished):
        ...         print("finished" if finished else "stopped")
        >>> from torchrec_mtl.training.monitor import Monitor
        >>> monitor = Monitor(Path("runs/a/tafe"), [Printed()], model="tafe")
        >>> monitor.start(0)
        runs/a/tafe tafe
        >>> monitor.scalars(20, [{"split": "train", "metric": "loss", "value": 0.5}])
        20 {'train/loss': 0.5}
        >>> monitor.close(finished=True)
        finished
    """

    def start(self, directory: Path, step: int, labels: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Begins, or goes on after ``step`` steps.

        Args:
            directory: folder of the run of one model; it exists.
            step: number of steps taken before.
            labels: model, seed and dataset.
            settings: settings of the run, by path.
        """

    def scalars(self, step: int, rows: Measurements) -> None:
        """Records rows ``{split, metric, value}``, some with ``task`` and ``space``, of step ``step``."""

    def close(self, finished: bool) -> None:
        """Ends the record of a run that is ``finished``, or was stopped and can be resumed."""


def scalar_name(row: Mapping[str, Any]) -> str:
    """The name of a row's scalar.

    Example::

        >>> scalar_name({"split": "valid", "task": "click", "space": "impressions", "metric": "auc", "value": 0.7})
        'valid/auc/click/impressions'
    """
    return "/".join(row[key] for key in ("split", "metric", "task", "space") if row.get(key))


class JsonLines:
    """``metrics.jsonl``: one object a row, with the labels of the run."""

    def start(self, directory: Path, step: int, labels: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Opens the file; drops rows of steps after ``step`` that a former process wrote."""
        file, self._labels = directory / METRICS_FILE, labels
        write_whole(file, "".join(_lines_up_to(step, file) if step and file.is_file() else []))
        self._lines = file.open("a")

    def scalars(self, step: int, rows: Measurements) -> None:
        """Appends the rows."""
        self._lines.writelines(to_json({**self._labels, "step": step, **row}) + "\n" for row in rows)
        self._lines.flush()

    def close(self, finished: bool) -> None:
        """Closes the file."""
        self._lines.close()


class TensorBoard:
    """TensorBoard's events in the folder of the run."""

    def start(self, directory: Path, step: int, labels: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Opens the events; TensorBoard leaves out those after ``step`` that a former process wrote."""
        from torch.utils.tensorboard import SummaryWriter  # of the extra "report", which not every run needs

        self._events = SummaryWriter(str(directory), purge_step=step + 1 if step else None)

    def scalars(self, step: int, rows: Measurements) -> None:
        """Writes the rows."""
        for row in rows:
            self._events.add_scalar(scalar_name(row), row["value"], step)

    def close(self, finished: bool) -> None:
        """Closes the events."""
        self._events.close()


class MLflow:
    """A run of MLflow, on the server or in the data base that ``MLFLOW_TRACKING_URI`` names.

    Its experiment is ``MLFLOW_EXPERIMENT_NAME``, by default the data set. The settings are its parameters. A run that
    is resumed goes on with the same run of MLflow, whose id is in the file ``mlflow_run`` of its folder.
    """

    def start(self, directory: Path, step: int, labels: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Finds the run or makes one.

        Raises:
            InputError: if MLflow refuses.
        """
        from mlflow import MlflowClient
        from mlflow.entities import Param
        from mlflow.exceptions import MlflowException

        params = [Param(_allowed(path), str(value)) for path, value in settings.items()]
        try:
            self._client = MlflowClient()
            self._run = self._find(directory, labels)
            self._client.update_run(self._run, status="RUNNING")
            for start in range(0, len(params), 100):  # the most that it takes
                self._client.log_batch(self._run, params=params[start : start + 100])
            known = self._client.get_metric_history(self._run, LAST)
        except MlflowException as error:
            reason = " ".join(str(error).split())
            raise InputError(f"`MLFLOW_TRACKING_URI` must name what MLflow can record in: {reason}") from error
        self._known = max((each.step for each in known), default=0)

    def _find(self, directory: Path, labels: Mapping[str, Any]) -> str:
        file = directory / MLFLOW_FILE
        if not file.is_file():
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or labels["dataset"]
            found = self._client.get_experiment_by_name(name)
            experiment = self._client.create_experiment(name) if found is None else found.experiment_id
            titled = f"{directory.parent.name}/{directory.name}"
            made = self._client.create_run(experiment, tags={**labels, "folder": str(directory)}, run_name=titled)
            write_whole(file, made.info.run_id + "\n")
        return file.read_text().strip()

    def scalars(self, step: int, rows: Measurements) -> None:
        """Logs the rows, unless a former process has logged this step: MLflow takes nothing back."""
        from mlflow.entities import Metric

        if step <= self._known:
            return
        now = time.time_ns() // 10**6
        metrics = [Metric(_allowed(scalar_name(row)), row["value"], now, step) for row in rows]
        metrics.sort(key=lambda metric: metric.key == LAST)
        for start in range(0, len(metrics), 1000):  # the most that it takes
            self._client.log_batch(self._run, metrics=metrics[start : start + 1000])

    def close(self, finished: bool) -> None:
        """Ends the run of MLflow."""
        self._client.set_terminated(self._run, "FINISHED" if finished else "KILLED")


TRACKERS: dict[str, Callable[[], Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow}


def _allowed(name: str) -> str:
    """The name in the characters that MLflow takes."""
    return re.sub(r"[^\w./ -]", "_", name)


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
