"""The case of each public callable, and of methods that take what a user gives."""

from collections.abc import Mapping

from tests.fuzz.cases import (
    balancing,
    data,
    datasets,
    inference,
    jobs,
    losses,
    metrics,
    models,
    modules,
    ops,
    table,
    tasks,
    training,
    values,
)
from tests.fuzz.cell import Case

_FACES: Mapping[str, Mapping[str, Case]] = {
    "": {**tasks.CASES, **values.KINDS, **inference.TOP, **table.TOP},
    "data.table.infer": table.INFER,
    "data": data.DATA,
    "datasets": datasets.CASES,
    "inference": inference.CASES,
    "inference.package": inference.PACKAGE,
    "losses": {**losses.CASES, **values.LOSSES},
    "metrics": {**metrics.CASES, **values.METRICS},
    "models": models.CASES,
    "modules": {**modules.CASES, **values.MODULES},
    "ops": ops.CASES,
    "systems": data.SYSTEMS,
    "training.balancing": balancing.CASES,
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
    "TableEncoder": "is made by fitting or loading",
    "data.MultiTaskBatch": "holds what `check_batch` checks",
    "data.StreamedSplit": "is made by `stream_split`",
    "inference.Predictions": "is returned only",
    "inference.package.Package": "is made by `load_package`",
    "metrics.CalibrationCurve": "is returned only",
    "models.MultiTaskModel": "is abstract",
    "modules.Gate": "is a protocol",
    "modules.SmoothStepSchedule": "is a tuple, checked where it is used",
    "modules.LabelStatistics": "is a tuple, checked where it is used",
    "ops.AdapterWeights": "is a tuple, checked where it is used",
    "ops.GeneratorWeights": "is a tuple, checked where it is used",
    "training.balancing.BalancingMethod": "is abstract",
    "training.checkpoint.ChangedRows": "is returned only",
    "training.checkpoint.Checkpointer": "needs ranks: tests/training/test_checkpoint.py",
    "training.checkpoint.load_weights": "needs ranks: tests/training/test_checkpoint.py",
    "training.checkpoint.read_changed_rows": "reads what ranks wrote: tests/training/test_changed_rows.py",
    "training.checkpoint.save_changed_rows": "needs ranks: tests/training/test_changed_rows.py",
}
