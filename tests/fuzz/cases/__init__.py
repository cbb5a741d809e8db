"""The case of each public callable, and of methods that take what a user gives."""

from collections.abc import Mapping

from tests.fuzz.cases import data, datasets, inference, jobs, losses, metrics, models, modules, ops, tasks, training
from tests.fuzz.cell import Case

_FACES: Mapping[str, Mapping[str, Case]] = {
    "": {**tasks.CASES, **inference.LOADING},
    "data": data.DATA,
    "datasets": datasets.CASES,
    "inference": inference.CASES,
    "losses": losses.CASES,
    "metrics": metrics.CASES,
    "models": models.CASES,
    "modules": modules.CASES,
    "ops": ops.CASES,
    "systems": data.SYSTEMS,
    "training.checkpoint": training.CHECKPOINTS,
    "training.config": training.CONFIGS,
    "jobs": jobs.CASES,
    "components": jobs.COMPONENTS,
}
CASES: Mapping[str, Case] = {
    **{f"{face}.{name}".lstrip("."): case for face, cases in _FACES.items() for name, case in cases.items()},
    "MultiTaskTrain": data.TRAINING["MultiTaskTrain"],
}

# Public, and no callable that checks arguments: why not.
CONTAINERS: Mapping[str, str] = {
    "data.MultiTaskBatch": "holds what `check_batch` checks",
    "data.StreamedSplit": "is made by `stream_split`",
    "inference.Predictions": "is returned only",
    "metrics.CalibrationCurve": "is returned only",
    "models.MultiTaskModel": "is abstract",
    "modules.Gate": "is a protocol",
    "modules.SmoothStepSchedule": "is a tuple, checked where it is used",
    "ops.AdapterWeights": "is a tuple, checked where it is used",
    "ops.GeneratorWeights": "is a tuple, checked where it is used",
    "training.checkpoint.Checkpointer": "needs ranks: tests/training/test_checkpoint.py",
    "training.checkpoint.load_weights": "needs ranks: tests/training/test_checkpoint.py",
}
