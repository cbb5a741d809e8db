"""The `triton` backend: checks whether it can run, and imports Triton only then.

`operators` makes the kernels PyTorch operators, `launch` starts them; `forward` and `backward` are the kernels.
"""

import importlib.util
import os

import torch
from torch import Tensor

from torchrec_mtl.errors import InputError
from torchrec_mtl.ops.inducing_attention.stack import InducingLayer, InducingStack

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_MAX_DIM, _MAX_POINTS = 128, 256
_CAPABILITY = (8, 0)
_INSTALLED = importlib.util.find_spec("triton") is not None  # at import, because Dynamo cannot trace the call


def why_not(inputs: Tensor, points: Tensor) -> str | None:
    """Returns why the kernels cannot take inputs ``[B, F, D]`` and points ``[..., K, D]``; None if they can."""
    if not _INSTALLED:
        return "Triton is not installed"
    if inputs.device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"it runs on a GPU, and the inputs are on {inputs.device.type!r}"
    if inputs.dtype not in _DTYPES:
        return f"it computes in float32, bfloat16 and float16, and the inputs are {inputs.dtype}"
    if points.shape[-1] > _MAX_DIM or points.shape[-2] > _MAX_POINTS:
        dim, count = points.shape[-1], points.shape[-2]
        return f"it takes up to {_MAX_POINTS} points of up to {_MAX_DIM} dimensions, not {count} of {dim}"
    return None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def why_not_device(index: int | None) -> str | None:
    """Returns why the kernels should not be taken unasked on a GPU; None if they may."""
    if torch.version.hip is not None:
        return "they have not been measured on this kind of GPU"
    if torch.cuda.get_device_capability(index) < _CAPABILITY:
        return f"Triton needs a GPU of compute capability {'.'.join(map(str, _CAPABILITY))}"
    return None


def _check(inputs: Tensor, selection: Tensor, points: Tensor, num_heads: int) -> None:
    """Checks the shapes by which the kernels read memory."""
    reason = why_not(inputs, points)
    if reason is not None:
        raise InputError(f"the backend 'triton' cannot be used: {reason}")
    batch, (num_points, dim) = inputs.shape[0], points.shape[-2:]
    if inputs.ndim != 3 or not inputs.shape[1] or inputs.shape[2] != dim:
        raise InputError(f"`inputs` (of shape {list(inputs.shape)}) must be [B, F, {dim}], F > 0")
    if selection.shape != (batch, num_points):
        raise InputError(f"`selection` (of shape {list(selection.shape)}) must be [{batch}, {num_points}]")
    if num_heads < 1 or dim % num_heads:
        raise InputError(f"`num_heads` (={num_heads}) must divide the embedding dimension (={dim})")


def inducing_layer(inputs: Tensor, selection: Tensor, layer: InducingLayer) -> Tensor:
    """Eq. (17)-(20); shapes as in the front door.

    Raises:
        InputError: if the kernels cannot run here, or a shape does not fit.
    """
    _check(inputs, selection, layer.weights.points, layer.num_heads)
    if layer.residual == "input" and inputs.shape[1] != selection.shape[1]:
        raise InputError(f"the 'input' as residual must have {selection.shape[1]} rows, not {inputs.shape[1]}")
    from torchrec_mtl.ops.inducing_attention.triton import operators

    return operators.inducing_layer(inputs, selection, layer)


def inducing_stack(inputs: Tensor, selection: Tensor, stack: InducingStack) -> Tensor:
    """Eq. (17)-(22); shapes as in the front door.

    Raises:
        InputError: if the kernels cannot run here, or a shape does not fit.
    """
    _check(inputs, selection, stack.layers.points, stack.num_heads)
    if stack.masked:
        raise InputError("`masked` (=True) must be False for the backend 'triton'; 'sdpa' computes it on a GPU")
    return run(inputs, selection, stack)


def run(inputs: Tensor, selection: Tensor, stack: InducingStack) -> Tensor:
    """`inducing_stack` where `why_not` was asked and found nothing, and the front door has checked the shapes."""
    from torchrec_mtl.ops.inducing_attention.triton import operators

    return operators.inducing_stack(inputs, selection, stack)
