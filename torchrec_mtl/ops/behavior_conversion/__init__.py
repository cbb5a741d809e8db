"""BPCM's feature towers and the conversions from task to task, eq. (2)-(9), in one C++ operation on the CPU.

Module by module, every intermediate result of a few columns goes through memory; here a sample stays in the core's own
cache. The kernel is optional: ``python -m torchrec_mtl.ops.build`` builds it. Where it is not built, callers go module
by module. `reference.py` is the definition.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchrec_mtl.ops import library
from torchrec_mtl.ops.backends import differentiable_gradients
from torchrec_mtl.ops.behavior_conversion import reference

Edges = Sequence[tuple[int, int]]


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    fields, weights, *ctx.arguments = inputs
    ctx.save_for_backward(fields, *weights)


def _stacked(*tensors: Tensor, **arguments: Any) -> Tensor:
    return torch.stack(reference.behavior_conversion(*tensors, **arguments))


def _gradients(ctx, upstream):  # type: ignore[no-untyped-def]
    fields, *weights = ctx.saved_tensors
    upstream = [torch.zeros_like(fields) if x is None else x for x in upstream]
    flat_edges, num_heads, dropout, seed = ctx.arguments
    none = 4 * [None]
    if torch.is_grad_enabled():  # create_graph=True
        edges = list(zip(flat_edges[::2], flat_edges[1::2], strict=True))
        drawn = masks(fields.detach(), len(edges), dropout, seed)
        defined = functools.partial(_stacked, edges=edges, num_heads=num_heads, masks=drawn)
        d_fields, *d_weights = differentiable_gradients(defined, ctx.saved_tensors, torch.stack(upstream))
        return d_fields, d_weights, *none
    d_fields, flat = torch.ops.torchrec_mtl.behavior_conversion_backward(fields, weights, upstream, *ctx.arguments)
    parts = flat.split([x.numel() for x in weights])
    return d_fields, [part.view(x.shape) for part, x in zip(parts, weights, strict=True)], *none


def _like_states(fields: Tensor, weights: Sequence[Tensor], edges: Sequence[int], *_: object) -> list[Tensor]:
    of_towers = len(weights) - reference.CONVERSION * len(edges) // 2
    return [fields.new_empty(fields.shape) for _ in range(of_towers // reference.TOWER)]


def _like_gradients(fields: Tensor, weights: Sequence[Tensor], *_: object) -> tuple[Tensor, Tensor]:
    return fields.new_empty(fields.shape), fields.new_empty(sum(x.numel() for x in weights))


def _like_masks(fields: Tensor, num_edges: int, *_: object) -> Tensor:
    return fields.new_empty(num_edges, *fields.shape)


if library.load():
    torch.library.register_fake("torchrec_mtl::behavior_conversion", _like_states)
    torch.library.register_fake("torchrec_mtl::behavior_conversion_backward", _like_gradients)
    torch.library.register_fake("torchrec_mtl::behavior_conversion_masks", _like_masks)
    torch.library.register_autograd("torchrec_mtl::behavior_conversion", _gradients, setup_context=_save)


def masks(fields: Tensor, num_edges: int, dropout: float, seed: int) -> Tensor:
    """Returns what dropout multiplies the message of each edge with: ``[E, B, F, D]`` for fields ``[B, F, D]``."""
    drawn: Tensor = torch.ops.torchrec_mtl.behavior_conversion_masks(fields, num_edges, dropout, seed)
    return drawn


def behavior_conversion(
    fields: Tensor, weights: Sequence[Tensor], edges: Edges, num_heads: int = 1, dropout: float = 0.0, seed: int = 0
) -> list[Tensor]:
    """BPCM eq. (2)-(9): the state ``Z_t`` of every task from the embeddings of the fields.

    The result has the same bits for any number of threads (`torch.set_num_threads`). Second derivatives are the
    reference's.

    Args:
        fields: ``E [B, F, D]``.
        weights: of each task's tower query, key and value ``[D, D]``, ``W1 [H, D]``, ``b1 [H]``, ``W2 [D, H]``,
            ``b2 [D]``, ``W_C`` and ``W_D [D, D]``; then of each edge query, key and value ``[D, D]``. Rows are outputs.
        edges: pairs of the task that a message comes from and the task that receives it, a task's own message first.
        num_heads: number of heads of every attention; must divide ``D``.
        dropout: probability of dropping an element of a message, at least 0 and below 1.
        seed: what decides, with an element's place, whether it is dropped.

    Returns:
        ``Z_t [B, F, D]`` of each task.

    Raises:
        InputError: if the tensors are not on the CPU, or not all float32 or all float64; or if the kernel is not built.
        RuntimeError: if a shape or an argument does not fit.
    """
    library.require("behavior-conversion", fields, *weights)
    flat_edges = [task for edge in edges for task in edge]
    states: list[Tensor] = torch.ops.torchrec_mtl.behavior_conversion(
        fields, list(weights), flat_edges, num_heads, dropout, seed
    )
    return states
