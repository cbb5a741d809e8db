"""Attention of learnt query points to a sample's fields, TAFE eq. (17)-(19) and (21): the front door.

`inducing_attention` has one set of points and projections (ASRG); `indicator_attention` has one point with
projections of its own for each task (TSA). Both check their arguments, choose a backend and call it.

Backends:
    reference: the equations as they stand, one projection after the other (`reference.py`, the definition).
    folded: the same with the projections folded into the points, once per step (`folded.py`).
    auto: the fastest that runs here; today `folded` everywhere.
"""

from types import ModuleType

from torch import Tensor

from torchrec_mtl.errors import InputError
from torchrec_mtl.ops.inducing_attention import folded, reference

BACKENDS: dict[str, ModuleType] = {"auto": folded, "reference": reference, "folded": folded}


def _backend(name: str) -> ModuleType:
    if name not in BACKENDS:
        raise InputError(f"`backend` (={name!r}) must be one of {list(BACKENDS)}")
    return BACKENDS[name]


def inducing_attention(
    points: Tensor,
    selection: Tensor,
    inputs: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    output_weight: Tensor,
    num_heads: int,
    backend: str = "auto",
) -> Tensor:
    """Multi-head attention of the selected inducing points to the inputs, TAFE eq. (17)-(19).

    A point with ``selection`` 0 has a zero query, hence uniform attention: its output is the mean of the values
    (times ``Wo``), not zero. That is what the equations say.

    Args:
        points: ``I [K, D]``, the heads' ``I_j [K, d_h]`` side by side.
        selection: ``z [B, K]``, one scalar a point, shared by the heads.
        inputs: ``H [B, F, D]``.
        key_weight: ``Wk [D, D]``, rows are outputs as in `torch.nn.Linear`; head ``j`` owns rows
            ``j * d_h`` to ``(j + 1) * d_h``.
        value_weight: ``Wv [D, D]``, likewise.
        output_weight: ``Wo [D, D]``, rows are outputs.
        num_heads: ``m``; must divide ``D``.
        backend: see the module.

    Returns:
        ``O [B, K, D]``.

    Raises:
        InputError: if ``backend`` is none of the above.

    Example::

        >>> import torch
        >>> H, eye = torch.randn(5, 7, 4), torch.eye(4)
        >>> O = inducing_attention(torch.randn(3, 4), torch.zeros(5, 3), H, eye, eye, eye, num_heads=2)
        >>> torch.allclose(O, H.mean(1, keepdim=True).expand(5, 3, 4), atol=1e-6)
        True
    """
    run = _backend(backend).inducing_attention
    return run(points, selection, inputs, key_weight, value_weight, output_weight, num_heads)


def indicator_attention(
    indicators: Tensor,
    inputs: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    output_weight: Tensor,
    num_heads: int,
    backend: str = "auto",
) -> Tensor:
    """Multi-head attention of one indicator a task to the inputs, TAFE eq. (21).

    Args:
        indicators: ``a [T, D]``, one query a task.
        inputs: ``Y [B, K, D]``, shared by the tasks.
        key_weight: ``Wk [T, D, D]``, a `torch.nn.Linear` weight a task.
        value_weight: ``Wv [T, D, D]``, likewise.
        output_weight: ``Wo [T, D, D]``, likewise.
        num_heads: ``m``; must divide ``D``.
        backend: see the module.

    Returns:
        ``F [B, T, D]``.

    Raises:
        InputError: if ``backend`` is none of the above.
    """
    run = _backend(backend).indicator_attention
    return run(indicators, inputs, key_weight, value_weight, output_weight, num_heads)


__all__ = ["BACKENDS", "indicator_attention", "inducing_attention"]
