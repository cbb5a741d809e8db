"""TorchRec's train pipeline of a run: which one it is, and the model without it.

`TrainPipelineSparseDist` rewrites the model, which then runs in the pipeline alone: it is detached before anything else
calls the model, and attached again by its next step.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torchrec.distributed.train_pipeline import TrainPipelineBase, TrainPipelineSparseDist
from torchrec.distributed.types import ShardedModule

from torchrec_mtl.errors import InputError
from torchrec_mtl.training.step import Step


def chosen_pipeline(name: str, model: nn.Module, device: torch.device) -> str:
    """The pipeline that ``name`` stands for: ``"base"`` or ``"sparse_dist"``.

    Args:
        name: name in `TrainingConfig`.
        model: model returned by `distribute`.
        device: device of the model.

    Raises:
        InputError: if ``"sparse_dist"`` is asked for, and no table is sharded.

    Example::

        >>> chosen_pipeline("auto", nn.Linear(2, 1), torch.device("cpu"))
        'base'
    """
    is_sharded = any(isinstance(module, ShardedModule) for module in model.modules())
    if name == "auto":
        return "sparse_dist" if is_sharded and device.type == "cuda" else "base"
    if name == "sparse_dist" and not is_sharded:
        raise InputError("`pipeline` (='sparse_dist') must be 'auto' or 'base' if every table is replicated")
    return name


class BasePipeline(TrainPipelineBase[Any, Any]):
    """TorchRec's, with the backward pass of ``step``."""

    def __init__(self, step: Step, device: torch.device) -> None:
        super().__init__(step, step, device)
        self._step = step

    def _backward(self, losses: Tensor) -> None:
        self._step.backward(losses)


class SparseDistPipeline(TrainPipelineSparseDist[Any, Any]):
    """TorchRec's, with the backward pass of ``step``."""

    def __init__(self, step: Step, device: torch.device) -> None:
        super().__init__(step.model, step, device, custom_model_fwd=step)
        self._step = step

    def _backward(self, losses: Tensor) -> None:
        self._step.backward(losses)


def make_pipeline(name: str, step: Step, device: torch.device) -> Any:
    """The pipeline that takes ``step``; ``name`` is what `chosen_pipeline` returned."""
    return SparseDistPipeline(step, device) if name == "sparse_dist" else BasePipeline(step, device)


def detach(pipeline: Any) -> None:
    """Lets the model run outside the pipeline, which keeps the batches that it has read, and goes on with them."""
    if isinstance(pipeline, TrainPipelineSparseDist):
        pipeline.detach()
