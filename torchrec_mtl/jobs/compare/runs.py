"""One run of a comparison: its settings, making it, and reading its result."""

import platform
import shutil
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from torchrec_mtl.data import Schema, Split, StreamedSplit, load_schema
from torchrec_mtl.errors import InputError
from torchrec_mtl.files import read_json, to_json, write_whole
from torchrec_mtl.jobs.compare import table_models
from torchrec_mtl.jobs.compare.table_models import FitConfig
from torchrec_mtl.jobs.datasets import open_split
from torchrec_mtl.jobs.environment import processor
from torchrec_mtl.jobs.results import save_report
from torchrec_mtl.jobs.run_config import RunConfig, describe_data, first_difference
from torchrec_mtl.jobs.single_run import train_model
from torchrec_mtl.metrics import METRICS, Metric
from torchrec_mtl.training.evaluation import early_stopping_metric
from torchrec_mtl.training.process_group import default_device, process_group
from torchrec_mtl.training.result import with_nan

RESULT, REPORT = "result.json", "report.json"


@dataclass(frozen=True)
class Run:
    """A training run.

    Args:
        stage: ``"search"``, ``"final"`` or ``"sweep"``; only final runs read the test split.
        variant: candidate or point of the sweep, which distinguishes runs of the same model and seed.
        dataset: folder or URI of the prepared data set.
        config: settings of the run.
        directory: folder of its result, log and history.
        keep_weights: whether to keep the best weights.
        known: metrics that the run measures, by name; another process must be able to import their functions.
        data: what `describe_data` says of the data, which must be that of the result; None for any data.
    """

    stage: str
    variant: str
    dataset: Path | str
    config: RunConfig | FitConfig
    directory: Path
    keep_weights: bool = False
    known: Mapping[str, Metric] = field(default_factory=lambda: METRICS)
    data: str | None = None

    @property
    def chosen_by(self) -> Metric:
        """The early stopping metric, of which ``valid_score`` in the result is a value."""
        return early_stopping_metric(self.config, self.known)

    def __str__(self) -> str:
        names = [self.stage, self.config.name, self.variant, f"seed {self.config.seed}"]
        return " ".join(name for name in names if name)


def read_result(run: Run) -> dict[str, Any] | None:
    """The result of ``run``, or None if it is not finished.

    Raises:
        InputError: if the run was made with other settings or data, since their results must not mix, or the file is
            damaged.
    """
    file = run.directory / RESULT
    if not file.is_file():
        return None
    result = read_json(file)
    check_result(run, result, str(file), "name another `output`, or remove the folder")
    return {**result, **{split: with_nan(result[split]) for split in ("valid", "test")}}


def check_result(run: Run, result: Mapping[str, Any], source: str, remedy: str) -> None:
    """Raises `InputError` unless ``result``, read from ``source``, is of the settings and data of ``run``."""
    made, wanted = result.get("config"), run.config.as_dict()
    if not isinstance(made, dict):
        raise InputError(f"{source}: must be the result of a run, but has no `config`; remove it")
    if run.data is not None:
        made, wanted = {**made, "data": result.get("data")}, {**wanted, "data": run.data}
    if difference := first_difference(made, wanted):
        raise InputError(f"{source}: was made with {difference}; {remedy}")


@lru_cache(maxsize=1)
def _load(dataset: Path | str) -> tuple[Schema, dict[str, Split | StreamedSplit]]:
    schema = load_schema(dataset)
    return schema, {split: open_split(dataset, split, schema) for split in ("train", "valid", "test")}


def make(run: Run) -> None:
    """Trains, measures, and writes ``result.json`` last and whole; removes what a killed run left."""
    shutil.rmtree(run.directory, ignore_errors=True)
    run.directory.mkdir(parents=True)
    began = time.perf_counter()
    device = default_device()
    with process_group(device):
        schema, splits = _load(run.dataset)
        data = describe_data(splits)
        if run.data not in (None, data):
            raise InputError(
                f"{str(run.dataset).split('?')[0]}: was changed during the comparison: {run.data} is now {data}"
            )
        if run.stage != "final":
            splits = {split: rows for split, rows in splits.items() if split != "test"}
        if isinstance(run.config, FitConfig):
            measured = table_models.train(run.config, schema, splits, run.known)
        else:
            measured = _train(run, run.config, schema, splits, device)
    seconds = time.perf_counter() - began
    result = {"config": run.config.as_dict(), "data": data, **measured, "seconds": seconds, **provenance()}
    write_whole(run.directory / RESULT, to_json(result, indent=1) + "\n")


def _train(
    run: Run,
    config: RunConfig,
    schema: Schema,
    splits: Mapping[str, Split | StreamedSplit],
    device: torch.device,
) -> dict[str, Any]:
    report = train_model(config, schema, splits, device, run.directory, metrics=run.known)
    save_report(report, run.directory / REPORT)
    if not run.keep_weights:
        shutil.rmtree(run.directory / "checkpoints")
    best = [row for row in report.result.history if row["step"] == report.result.best_step]
    return {
        "valid": [{key: row[key] for key in ("task", "space", "metric", "value")} for row in best],
        "test": report.test,
        "scenes": report.scenes,
        "valid_score": report.result.best_score,
        "best_step": report.result.best_step,
        "samples_per_second": report.result.samples_per_second,
        "num_parameters": report.num_parameters,
    }


def provenance() -> dict[str, Any]:
    """Date, commit, versions and hardware."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        commit = ""
    packages = ("torch", "torchrec", "numpy", "torchrec_mtl")
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit or "not a git checkout",
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor(),
    }
