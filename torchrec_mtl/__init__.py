"""Multi-task models for sequential funnels, as TorchRec models."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchrec_mtl.tasks import Task, TaskChain, TaskForest
    from torchrec_mtl.training import MultiTaskTrain

__all__ = ["MultiTaskTrain", "Task", "TaskChain", "TaskForest"]

_MODULES = {
    "MultiTaskTrain": "torchrec_mtl.training",
    **dict.fromkeys(("Task", "TaskChain", "TaskForest"), "torchrec_mtl.tasks"),
}


def __getattr__(name: str) -> Any:
    """Loads what is first used, so that `torchrec_mtl.ops` needs torch alone."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
