"""Multi-task models for sequential funnels, as TorchRec models."""

import importlib
from typing import TYPE_CHECKING, Any

from torchrec_mtl.tasks import Task, TaskChain, TaskForest

if TYPE_CHECKING:
    from torchrec_mtl.data.table import (
        AgeInDays,
        Bins,
        ByHash,
        ByTime,
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
    from torchrec_mtl.training import MultiTaskTrain

__all__ = [
    "AgeInDays",
    "Bins",
    "ByHash",
    "ByTime",
    "Dense",
    "Hashed",
    "History",
    "Integers",
    "LogRound",
    "MultiTaskTrain",
    "Table",
    "TableEncoder",
    "Task",
    "TaskChain",
    "TaskForest",
    "TimeOf",
    "Vocabulary",
    "prepare_table",
]


def __getattr__(name: str) -> Any:
    """Imports a name on first use: `torchrec_mtl.ops` needs only torch, and a launcher not even that."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "torchrec_mtl.training" if name == "MultiTaskTrain" else "torchrec_mtl.data.table"
    return getattr(importlib.import_module(module), name)
