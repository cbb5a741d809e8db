"""Model weights on disk, whatever their sharding, through `torch.distributed.checkpoint`."""

import shutil
from pathlib import Path

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn

from torchrec_mtl.errors import InputError


def save_weights(model: nn.Module, directory: Path) -> None:
    """Writes ``model.state_dict()`` beside ``directory`` and, once whole, puts it in its place.

    Called by all ranks.
    """
    aside = directory.with_name(directory.name + ".partial")
    if dist.get_rank() == 0:
        shutil.rmtree(aside, ignore_errors=True)
    dist.barrier()
    dcp.save({"model": model.state_dict()}, checkpoint_id=aside)
    if dist.get_rank() == 0:
        shutil.rmtree(directory, ignore_errors=True)
        aside.rename(directory)
    dist.barrier()


def load_weights(model: nn.Module, directory: Path) -> None:
    """Reads what `save_weights` wrote into ``model``, sharded in the same way or another.

    Raises:
        InputError: if there is nothing at ``directory``.
    """
    if not (directory / ".metadata").is_file():
        raise InputError(f"`directory` (={str(directory)!r}) must hold saved weights")
    state = {"model": model.state_dict()}
    dcp.load(state, checkpoint_id=directory)
    model.load_state_dict(state["model"])
