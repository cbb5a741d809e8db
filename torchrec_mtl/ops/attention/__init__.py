"""Multi-head attention of one set of rows to another, projections included: the front door.

Backends:
    reference: PyTorch's matrix products, on any device and in any type (`reference.py`, the definition).
    cpp: a C++ kernel on the CPU, if it has been built (`cpp`); 16-bit types, and under autocast, in float32.
    auto: `cpp` where it can run and is faster, `reference` elsewhere; the choice and the reason are logged once.

If ``backend`` is "auto", the environment variable ``TORCHREC_MTL_ATTENTION`` can name the backend instead.
"""

import torch
from torch import Tensor

from torchrec_mtl.errors import InputError
from torchrec_mtl.ops import library
from torchrec_mtl.ops.attention import cpp, reference
from torchrec_mtl.ops.backends import log_choice, requested_backend
from torchrec_mtl.ops.shapes import check_heads, check_shape, sizes

BACKENDS = ("auto", "reference", "cpp")


def attention(
    queries: Tensor,
    inputs: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    num_heads: int = 1,
    backend: str = "auto",
) -> Tensor:
    """``concat_j softmax(Q_j K_j^T / sqrt(d_h)) V_j`` over ``m`` heads, BPCM eq. (2)-(3).

    Args:
        queries: ``X [B, N, D]``.
        inputs: ``Y [B, M, D]``; the queries themselves for self-attention.
        query_weight: ``[D, D]``, rows are outputs as in `torch.nn.Linear`; head ``j`` owns rows
            ``j * d_h`` to ``(j + 1) * d_h``.
        key_weight: ``[D, D]``, laid out like ``query_weight``.
        value_weight: ``[D, D]``, laid out like ``query_weight``.
        num_heads: ``m``; must divide ``D``, ``d_h = D / m``.
        backend: one of the names listed at the top of the module.

    Returns:
        ``[B, N, D]``, the heads side by side.

    Raises:
        InputError: if a shape is not as above, ``num_heads`` does not divide ``D``, or ``backend`` is not one of those
            names, or is "cpp" and the kernel cannot run.

    Example::

        >>> eye, zero = torch.eye(2), torch.zeros(2, 2)
        >>> attention(torch.zeros(1, 1, 2), torch.arange(8.0).view(1, 4, 2), zero, zero, eye)
        tensor([[[3., 4.]]])
    """
    return _dispatch(queries, inputs, query_weight, key_weight, value_weight, num_heads, backend)


def _dispatch(queries: Tensor, inputs: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, num_heads: int, name: str) -> Tensor:
    if not torch.jit.is_scripting():
        return _run(queries, inputs, wq, wk, wv, num_heads, name)
    return reference.attention(queries, inputs, wq, wk, wv, num_heads)


torch.fx.wrap("_dispatch")  # the choice depends on the tensors, so a traced graph makes it each time it runs


def _run(queries: Tensor, inputs: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, num_heads: int, name: str) -> Tensor:
    batch, _, dim = sizes("queries", queries, 3)
    check_shape("inputs", inputs, batch, sizes("inputs", inputs, 3)[1], dim)
    for of_weight, weight in (("query_weight", wq), ("key_weight", wk), ("value_weight", wv)):
        check_shape(of_weight, weight, dim, dim)
    check_heads(num_heads, dim)
    name = requested_backend("attention", name, BACKENDS)
    if name == "auto":
        reason = _why_reference(queries, inputs, wq, wk, wv, num_heads)
        name = "cpp" if reason is None else "reference"
        log_choice("attention", name, reason or "it is faster for such shapes")
    elif name == "cpp" and not inputs.shape[1]:
        raise InputError(f"`inputs` (of shape {list(inputs.shape)}) must have at least one row for the backend 'cpp'")
    if name == "reference":
        return reference.attention(queries, inputs, wq, wk, wv, num_heads)
    (queries, inputs, wq, wk, wv), dtype = library.in_kernels_precision(queries, inputs, wq, wk, wv)
    return cpp.attention(queries, inputs, wq, wk, wv, num_heads).to(dtype)


def _why_reference(queries: Tensor, inputs: Tensor, wq: Tensor, wk: Tensor, wv: Tensor, num_heads: int) -> str | None:
    """Returns why "auto" does not take the kernel; None if it does."""
    exporting = torch.compiler.is_exporting()
    if exporting and not library.is_carried():
        return "an exported program may run where there is no kernel"
    tensors = (queries, inputs, wq, wk, wv)
    reason = library.why_not(*tensors, types=library.kernels_types(*tensors)[0])
    if reason is not None:
        return f"the C++ kernel cannot be used: {reason}"
    # Measured with AVX2, forward and backward: up to 16 columns a head the kernel takes 0.2 to 0.9 of the reference's
    # time. With large sets it pays only for fewer columns, and for a batch that fills the lanes.
    (batch, rows, dim), num_inputs = queries.shape, inputs.shape[1]
    few = rows * num_inputs <= 2048
    pays = dim <= 16 * num_heads if few else dim <= 12 * num_heads and (exporting or batch >= 8)
    return None if pays and num_inputs else "it is faster for such shapes"
