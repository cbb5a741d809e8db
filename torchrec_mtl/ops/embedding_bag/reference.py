"""The definitions of the lookup and of the update, in PyTorch's operations. The kernels are tested against them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def lookup(
    tables: Sequence[Tensor],
    table_of_field: Sequence[int],
    key_of_field: Sequence[int],
    mean_of_field: Sequence[bool],
    ids: Tensor,
    offsets: Tensor,
    batch: int,
    weights: Tensor | None = None,
) -> Tensor:
    """Arguments as in `torchrec_mtl.ops.embedding_bag.lookup`."""
    fields = []
    for table, key, mean in zip(table_of_field, key_of_field, mean_of_field, strict=True):
        starts = offsets[key * batch : (key + 1) * batch + 1].long()
        inside = slice(int(starts[0]), int(starts[-1]))
        scale = torch.ones(inside.stop - inside.start, dtype=tables[table].dtype)
        if weights is not None:
            scale = scale * weights[inside]
        if mean:
            lengths = starts.diff()
            scale = scale / lengths.repeat_interleave(lengths)
        fields.append(
            F.embedding_bag(
                ids[inside].long(),
                tables[table],
                starts - starts[0],
                mode="sum",
                per_sample_weights=scale,
                include_last_offset=True,
            )
        )
    return torch.cat(fields, dim=1)


def update(
    tables: Sequence[Tensor],
    states: Sequence[Sequence[Tensor]],
    table_of_field: Sequence[int],
    key_of_field: Sequence[int],
    mean_of_field: Sequence[bool],
    ids: Tensor,
    offsets: Tensor,
    batch: int,
    gradient: Tensor,
    optimizer: str,
    *,
    learning_rate: float,
    eps: float = 1e-8,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    step: int = 1,
    weights: Tensor | None = None,
) -> None:
    """Arguments as in `torchrec_mtl.ops.embedding_bag.update`."""
    leaves = [table.detach().clone().requires_grad_() for table in tables]
    bags = (table_of_field, key_of_field, mean_of_field, ids, offsets, batch, weights)
    lookup(leaves, *bags).backward(gradient)
    for t, (table, leaf) in enumerate(zip(tables, leaves, strict=True)):
        if leaf.grad is None:
            continue
        keys = [key for of_field, key in zip(table_of_field, key_of_field, strict=True) if of_field == t]
        rows = torch.cat([ids[offsets[key * batch] : offsets[(key + 1) * batch]] for key in keys]).unique().long()
        values = [x[rows] for x in (table, *(state[t] for state in states))]
        _step(optimizer, leaf.grad[rows], *values, learning_rate, eps, betas, weight_decay, step)
        for x, value in zip((table, *(state[t] for state in states)), values, strict=True):
            x[rows] = value


def _step(optimizer: str, g: Tensor, w: Tensor, *rest: Any) -> None:
    """Steps rows ``w [R, D]`` by their gradients ``g [R, D]``, in place."""
    *states, rate, eps, (beta1, beta2), weight_decay, step = rest
    square = g.square().mean(1) if optimizer.startswith("rowwise") else g.square()
    if optimizer == "sgd":
        w -= rate * g
    elif optimizer in ("adagrad", "rowwise_adagrad"):
        (total,) = states
        total += square
        w -= rate * g / (_by_column(total, w).sqrt() + eps)
    else:
        m, v = states
        m.lerp_(g, 1 - beta1)
        v.lerp_(square, 1 - beta2)
        corrected = m / (1 - beta1**step), _by_column(v, w) / (1 - beta2**step)
        w -= rate * (corrected[0] / (corrected[1].sqrt() + eps) + weight_decay * w)


def _by_column(state: Tensor, w: Tensor) -> Tensor:
    return state if state.ndim == w.ndim else state[:, None]
