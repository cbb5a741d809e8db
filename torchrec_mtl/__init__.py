"""Multi-task models for sequential funnels, as TorchRec models."""

from typing import TYPE_CHECKING, Any

from torchrec_mtl.tasks import Task, TaskChain, TaskForest

if TYPE_CHECKING:
    from torchrec_mtl.training import MultiTaskTrain

__all__ = ["MultiTaskTrain", "Task", "TaskChain", "TaskForest"]


def __getattr__(name: str) -> Any:
    """Imports `MultiTaskTrain` on first use: `torchrec_mtl.ops` needs only torch, and a launcher not even that."""
    if name != "MultiTaskTrain":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from torchrec_mtl.training import MultiTaskTrain

    return MultiTaskTrain
