"""Multi-head attention of one set of rows to another, with its projections: the front door.

Backends:
    reference: products of PyTorch's, on any device and in any type.
    cpp: the kernel of `torchrec_mtl.ops.small_attention`, for float32 and float64 on the CPU, if it has been built.
    auto: `cpp` where it can run and is the faster, `reference` elsewhere; the log says which and why, once.

The environment variable ``TORCHREC_MTL_ATTENTION`` names the backend where the argument is "auto".
"""

import torch
from torch import Tensor

from torchrec_mtl.ops.backends import log_choice, requested_backend
from torchrec_mtl.ops.small_attention import small_attention, why_not

BACKENDS = ("auto", "reference", "cpp")


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """``[..., N, D]`` to ``[..., m, N, d_h]``: head ``j`` takes columns ``j * d_h`` to ``(j + 1) * d_h``."""
    return x.unflatten(-1, (num_heads, -1)).transpose(-3, -2)


def merge_heads(x: Tensor) -> Tensor:
    """The inverse of `split_heads`: ``[..., m, N, d_h]`` to ``[..., N, D]``."""
    return x.transpose(-3, -2).flatten(-2)


def attention(
    queries: Tensor,
    inputs: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    num_heads: int = 1,
    backend: str = "auto",
) -> Tensor:
    """``concat_j softmax(Q_j K_j^T / sqrt(d_h)) V_j``, BPCM eq. (2)-(3), for each of ``m`` heads.

    Args:
        queries: ``X [B, N, D]``.
        inputs: ``Y [B, M, D]``; the queries themselves for self-attention.
        query_weight: ``[D, D]``, rows are outputs as in `torch.nn.Linear`; head ``j`` owns rows
            ``j * d_h`` to ``(j + 1) * d_h``.
        key_weight: ``[D, D]``, likewise.
        value_weight: ``[D, D]``, likewise.
        num_heads: ``m``; must divide ``D``, ``d_h = D / m``.
        backend: see the module.

    Returns:
        ``[B, N, D]``, the heads side by side.

    Raises:
        InputError: if ``backend`` is none of the above, or is "cpp" where that cannot run.

    Example::

        >>> eye, zero = torch.eye(2), torch.zeros(2, 2)
        >>> attention(torch.zeros(1, 1, 2), torch.arange(8.0).view(1, 4, 2), zero, zero, eye)
        tensor([[[3., 4.]]])
    """
    return _dispatch(queries, inputs, query_weight, key_weight, value_weight, num_heads, backend)


def _dispatch(queries: Tensor, inputs: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, num_heads: int, name: str) -> Tensor:
    name = requested_backend("attention", name, BACKENDS)
    if name == "auto":
        reason = _why_reference(queries, inputs, wq, wk, wv, num_heads)
        name = "cpp" if reason is None else "reference"
        log_choice("attention", name, reason or "it is the faster for such shapes")
    run = small_attention if name == "cpp" else _reference
    return run(queries, inputs, wq, wk, wv, num_heads)


torch.fx.wrap("_dispatch")  # the choice depends on the tensors: a traced graph makes it when it runs


def _why_reference(queries: Tensor, inputs: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, num_heads: int) -> str | None:
    """Why "auto" leaves the kernel aside; None if it does not."""
    if torch.compiler.is_exporting():
        return "an exported program may run where there is no kernel"
    reason = why_not(queries, inputs, wq, wk, wv)
    if reason is not None:
        return f"the C++ kernel cannot be used: {reason}"
    if torch.is_autocast_enabled("cpu"):
        return "autocast asks for another precision than the kernel's"
    # Measured with AVX2, forward and backward: up to 16 columns a head the kernel takes 0.2 to 0.9 of the time, and
    # large sets want fewer columns, and a batch that fills the lanes.
    (batch, rows, dim), num_inputs = queries.shape, inputs.shape[1]
    few = rows * num_inputs <= 2048
    pays = dim <= 16 * num_heads if few else dim <= 12 * num_heads and batch >= 8
    return None if pays and num_inputs else "it is the faster for such shapes"


def _reference(
    queries: Tensor, inputs: Tensor, query_weight: Tensor, key_weight: Tensor, value_weight: Tensor, num_heads: int
) -> Tensor:
    """``Q_j K_j^T = X (Wq_j Wk_j^T) Y^T``: the product of the two weights, once per step, replaces a projection."""
    heads = (num_heads, -1)
    query_heads, key_heads = query_weight.unflatten(0, heads), key_weight.unflatten(0, heads)
    folded = torch.einsum("jhd,jhe->dje", query_heads, key_heads) / query_heads.shape[1] ** 0.5
    folded_queries = (queries @ folded.flatten(1)).unflatten(-1, heads).transpose(1, 2)  # [B, m, N, D]
    scores = folded_queries.flatten(1, 2) @ inputs.transpose(1, 2)  # [B, m N, M]
    weights = scores.softmax(-1).unflatten(1, heads)
    return merge_heads(weights @ split_heads(inputs @ value_weight.T, num_heads))  # BPCM eq. (3)
