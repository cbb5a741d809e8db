"""Multi-task models for sequential funnels, as TorchRec models."""

from torchrec_mtl.tasks import TaskChain
from torchrec_mtl.training import MultiTaskTrain

__all__ = ["MultiTaskTrain", "TaskChain"]
