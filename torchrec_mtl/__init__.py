"""Multi-task models for sequential funnels, as TorchRec models."""

from torchrec_mtl.tasks import Task, TaskChain, TaskForest
from torchrec_mtl.training import MultiTaskTrain

__all__ = ["MultiTaskTrain", "Task", "TaskChain", "TaskForest"]
