"""Multi-task models for sequential funnels, as TorchRec models."""

import importlib
from typing import TYPE_CHECKING, Any

from torchrec_mtl.kinds import ZILN, Binary, Classes, Huber, Ordinal, Quantile, SquaredError
from torchrec_mtl.tasks import Task, TaskChain, TaskForest

__version__ = "0.1.0"

if TYPE_CHECKING:
    from torchrec_mtl.data.table import (
        AgeInDays,
        AnyId,
        Bins,
        ByColumn,
        ByHash,
        ByTime,
        Delay,
        Dense,
        Hashed,
        History,
        Integers,
        LogRound,
        Table,
        TableEncoder,
        TimeOf,
        Vocabulary,
        prepare_table,
    )
    from torchrec_mtl.inference import Predictor
    from torchrec_mtl.jobs.loading import load_run
    from torchrec_mtl.training import MultiTaskTrain

__all__ = [
    "ZILN",
    "AgeInDays",
    "AnyId",
    "Binary",
    "Bins",
    "ByColumn",
    "ByHash",
    "ByTime",
    "Classes",
    "Delay",
    "Dense",
    "Hashed",
    "History",
    "Huber",
    "Integers",
    "LogRound",
    "MultiTaskTrain",
    "Ordinal",
    "Predictor",
    "Quantile",
    "SquaredError",
    "Table",
    "TableEncoder",
    "Task",
    "TaskChain",
    "TaskForest",
    "TimeOf",
    "Vocabulary",
    "load_run",
    "prepare_table",
]

_ON_FIRST_USE = {  # `torchrec_mtl.ops` needs only torch, and a launcher not even that
    "MultiTaskTrain": "torchrec_mtl.training",
    "Predictor": "torchrec_mtl.inference",
    "load_run": "torchrec_mtl.jobs.loading",
}


def __getattr__(name: str) -> Any:
    """Imports what needs more than Python on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_ON_FIRST_USE.get(name, "torchrec_mtl.data.table")), name)
