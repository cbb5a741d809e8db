"""Attention of learnt query points to a sample's fields, TAFE eq. (17)-(22): the front door.

`inducing_stack` is all of it where one selection serves every layer: ASRG's layers and TSA's adapters.
`inducing_layer` and `adapter_layer` are one layer of each.

Backends:
    reference: the equations as they stand (`reference.py`, the definition).
    sdpa: by PyTorch's fused attention (`sdpa.py`).
    compact: the same, without a sample's rows that are alike; a stack only (`compact.py`).
    cpp: a kernel that does likewise, for float32 and float64 on the CPU, if it has been built; a stack only (`cpp.py`).
    triton: CUDA kernels that do likewise (`triton_stack.py`); only by name, for they have not yet run on a GPU.
    auto: the fastest that runs here; the log says which and why, once.

The environment variable ``TORCHREC_MTL_INDUCING_ATTENTION`` names the backend where the argument is "auto".
"""

import torch
from torch import Tensor

from torchrec_mtl.errors import InputError
from torchrec_mtl.ops.backends import log_choice, requested_backend
from torchrec_mtl.ops.inducing_attention import compact, cpp, reference, sdpa, triton_backend
from torchrec_mtl.ops.inducing_attention.sdpa import adapter_layer
from torchrec_mtl.ops.inducing_attention.stack import InducingLayer, InducingStack
from torchrec_mtl.ops.inducing_attention.weights import AdapterWeights, GeneratorWeights

BACKENDS = ("auto", "reference", "sdpa", "compact", "cpp", "triton")
_OPERATION = "inducing_attention"
_CPP_SIZE = 3072  # of a sample's fields or rows; measured with AVX2, 512 KiB of cache a core, forward and backward


def inducing_layer(inputs: Tensor, selection: Tensor, layer: InducingLayer, backend: str = "auto") -> Tensor:
    """One feature interaction learning layer of ASRG, TAFE eq. (17)-(20).

    A point with ``selection`` 0 has a zero query, hence uniform attention: what it reads is the mean of the values,
    not zero. That is what the equations say.

    Args:
        inputs: ``H [B, F, D]``.
        selection: ``z [B, K]``, one scalar a point, shared by the heads.
        layer: the weights, and how they are used.
        backend: see the module.

    Returns:
        ``Y [B, K, D]``.

    Raises:
        InputError: if ``backend`` is none of the above, is for a stack only, or cannot run.

    Example::

        >>> H, eye, one = torch.randn(5, 7, 4), torch.eye(4), torch.ones(4)
        >>> weights = GeneratorWeights(torch.randn(3, 4), eye, eye, eye, one, torch.zeros(4))
        >>> Y = inducing_layer(H, torch.zeros(5, 3), InducingLayer(weights, num_heads=2, residual="query"))
        >>> mean = torch.nn.functional.layer_norm(H.mean(1, keepdim=True), (4,))
        >>> torch.allclose(Y, mean.expand(5, 3, 4), atol=1e-5)
        True
    """
    name = requested_backend(_OPERATION, backend, BACKENDS)
    if name in ("compact", "cpp"):
        raise InputError(f"the backend {name!r} is for a stack whose layers share one selection, not for one layer")
    backends = {"auto": sdpa, "reference": reference, "sdpa": sdpa, "triton": triton_backend}
    return backends[name].inducing_layer(inputs, selection, layer)


def inducing_stack(inputs: Tensor, selection: Tensor, stack: InducingStack, backend: str = "auto") -> Tensor:
    """``L`` layers of ASRG with one selection and TSA's adapters on each, TAFE eq. (17)-(22).

    Args:
        inputs: ``H [B, F, D]``.
        selection: ``z [B, K]``, one scalar a point, shared by the heads and the layers.
        stack: the weights, and how they are used.
        backend: see the module.

    Returns:
        ``T^L [B, T, D]``, the adapted representations of the last layer.

    Raises:
        InputError: if ``backend`` is none of the above, or cannot run.

    Example::

        >>> square, row = torch.randn(2, 4, 4), torch.ones(2, 4)
        >>> layers = GeneratorWeights(torch.randn(2, 3, 4), square, square, square, row, row)
        >>> square, row = torch.randn(2, 6, 4, 4), torch.ones(2, 6, 4)
        >>> adapters = AdapterWeights(torch.randn(2, 6, 4), square, square, square, row, row)
        >>> stack = InducingStack(layers, adapters, num_heads=2)
        >>> inducing_stack(torch.randn(5, 7, 4), torch.rand(5, 3), stack).shape
        torch.Size([5, 6, 4])
    """
    return _dispatch(inputs, selection, stack, backend)


def _dispatch(inputs: Tensor, selection: Tensor, stack: InducingStack, name: str) -> Tensor:
    name = requested_backend(_OPERATION, name, BACKENDS)
    if name == "auto":
        name, reason = _choose(inputs, selection, stack)
        log_choice(_OPERATION, name, reason)
    backends = {"reference": reference, "sdpa": sdpa, "compact": compact, "cpp": cpp, "triton": triton_backend}
    return backends[name].inducing_stack(inputs, selection, stack)


torch.fx.wrap("_dispatch")  # the choice depends on the tensors: a traced graph makes it when it runs


def _choose(inputs: Tensor, selection: Tensor, stack: InducingStack) -> tuple[str, str]:
    """The backend that "auto" takes, and why."""
    if torch.compiler.is_exporting():
        return "sdpa", "an exported program may run where there is no kernel"
    if inputs.device.type != "cpu":
        return "sdpa", "to count the points at 0 would wait for the device"
    rows = num_points = selection.shape[1]
    if stack.z_grad == "gated" and not torch.compiler.is_compiling():  # which does not see what is selected
        rows = compact.num_rows(selection)
    reason = cpp.why_not(inputs, selection, *stack.layers, *stack.adapters)
    if reason is not None:
        reason = f"the C++ kernel cannot be used: {reason}"
    elif torch.is_autocast_enabled("cpu"):
        reason = "autocast asks for another precision than the C++ kernel's"
    elif max(inputs.shape[1], rows) * inputs.shape[2] <= _CPP_SIZE:
        return "cpp", "it is the fastest for such shapes"
    else:
        reason = "the rows are too large for the C++ kernel"
    if 8 * rows <= 7 * num_points:  # measured: 0.8 to 0.9 of the other's time at 8 / 10
        return "compact", f"enough points are at 0, and {reason}"
    return "sdpa", f"few points are at 0, or it is not known, and {reason}"


__all__ = [
    "BACKENDS",
    "AdapterWeights",
    "GeneratorWeights",
    "InducingLayer",
    "InducingStack",
    "adapter_layer",
    "inducing_layer",
    "inducing_stack",
]
