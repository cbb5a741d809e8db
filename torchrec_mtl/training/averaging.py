"""The mean over the ranks of what is updated after the backward pass, once an optimizer step."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.debugging_hooks import noop_hook
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.functional import pad
from torch.nn.parallel import DistributedDataParallel


class Averaging:
    """Says when the replicas of a model average their gradients: in every backward pass, unless it is not yet due.

    `DistributedDataParallel.no_sync` would leave buckets of gradients out in the same way, but not in a run's first
    pass, from which a replica learns its graph: a run that goes on from a checkpoint would add up in another order.

    Args:
        model: model whose replicas, `DistributedDataParallel` modules, have no hook of their own.

    Attributes:
        is_due: whether the next backward pass ends with the mean over the ranks.
    """

    def __init__(self, model: nn.Module) -> None:
        self.is_due = True
        for replica in model.modules():
            if isinstance(replica, DistributedDataParallel) and dist.get_world_size() > 1:
                replica.register_comm_hook(None, self._on_bucket)

    def _on_bucket(self, state: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
        if not self.is_due:
            return noop_hook(None, bucket)
        if _adds_up_as_it_may(bucket.buffer()):
            return allreduce_hook(None, bucket)  # type: ignore[arg-type]  # the default group
        average(bucket.buffer())
        return noop_hook(None, bucket)


def _adds_up_as_it_may(gradients: Tensor) -> bool:
    """Whether the order of the ranks is no matter: of two there is one sum, and CUDA promises no bits."""
    return dist.get_world_size() <= 2 or gradients.device.type == "cuda"


def average(gradients: Tensor) -> None:
    """Replaces ``gradients``, any shape, by their mean over the ranks.

    On a CPU the ranks are added up in their order: gloo's all-reduce begins with another rank in another place of a
    buffer, and a replica lays its buffers out anew after its first pass.
    """
    world_size = dist.get_world_size()
    gradients.div_(world_size)
    if _adds_up_as_it_may(gradients):
        dist.all_reduce(gradients)
        return
    size = -(-gradients.numel() // world_size)
    sent = pad(gradients.flatten(), (0, size * world_size - gradients.numel()))
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent)
    total, *others = received.split(size)
    for other in others:
        total += other
    dist.all_gather_into_tensor(sent, total)
    gradients.copy_(sent[: gradients.numel()].view_as(gradients))


def buffers(gradients: list[Tensor]) -> list[Tensor]:
    """The buffers that replicas keep ``gradients`` in, each once; a gradient of no replica is its own buffer."""
    found: dict[int, Any] = {}
    for gradient in gradients:
        base = gradient if gradient._base is None else gradient._base
        found[id(base)] = base
    return list(found.values())
