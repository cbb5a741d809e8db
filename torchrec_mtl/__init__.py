"""Multi-task models for sequential funnels, as TorchRec models."""

from typing import TYPE_CHECKING, Any

from torchrec_mtl.tasks import TaskChain

if TYPE_CHECKING:
    from torchrec_mtl.training import MultiTaskTrain

__all__ = ["MultiTaskTrain", "TaskChain"]


def __getattr__(name: str) -> Any:
    """`MultiTaskTrain` when it is first asked for: torch and TorchRec take seconds, and a launcher needs neither."""
    if name != "MultiTaskTrain":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from torchrec_mtl.training import MultiTaskTrain

    return MultiTaskTrain
