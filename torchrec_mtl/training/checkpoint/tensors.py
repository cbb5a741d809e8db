"""Tensors out of a checkpoint, into models of any sharding."""

from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from torchrec_mtl.errors import InputError
from torchrec_mtl.training.checkpoint.manifest import verify
from torchrec_mtl.training.checkpoint.safe_load import TensorPlanner, TensorReader


def load_weights(model: nn.Module, checkpoint: Path, group: dist.ProcessGroup | None = None) -> None:
    """Reads a checkpoint's weights into ``model``, sharded in the same way, in another, or not at all.

    Args:
        model: a `MultiTaskTrain` as the one that was saved, distributed or not.
        checkpoint: a folder that `Checkpointer` wrote.
        group: which ranks load; the default group.

    Raises:
        InputError: if a file is damaged, or the checkpoint does not fit the model.
    """
    verify(checkpoint, group)
    state = {"model": model.state_dict()}
    read_tensors(state, checkpoint, group)
    model.load_state_dict(state["model"])


def read_tensors(state: dict[str, Any], checkpoint: Path, group: dist.ProcessGroup | None) -> None:
    try:
        dcp.load(
            state,
            storage_reader=TensorReader(checkpoint),
            planner=TensorPlanner(),
            process_group=group,
            no_dist=not dist.is_initialized(),
        )
    except CheckpointException as error:
        causes = "; ".join(sorted({" ".join(str(cause).split()) for cause, _ in error.failures.values()}))
        raise InputError(f"{checkpoint}: must fit the model and its optimizer, but {causes}") from error
