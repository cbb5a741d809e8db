"""Attention of learnt query points to a sample's fields, TAFE eq. (17)-(22): the front door.

`inducing_stack` computes ASRG's layers and TSA's adapters together, where one selection serves every layer.
`inducing_layer` and `adapter_layer` compute one layer of each.

Backends:
    reference: the equations as they stand (`reference.py`, the definition).
    sdpa: PyTorch's fused attention (`sdpa.py`).
    compact: the same, with a sample's identical rows computed once; for a stack only (`compact.py`).
    cpp: a C++ kernel that does the same on the CPU, if it has been built; for a stack only (`cpp`). It computes 16-bit
        types, and under autocast, in float32.
    triton: CUDA kernels in Triton that do the same (`triton`).
    cuda: CUDA kernels in C++ that do the same, for up to 32 dimensions, if they have been built; for a stack only
        (`cuda`).
    auto: the fastest that runs here; the choice and the reason are logged once.

If ``backend`` is "auto", the environment variable ``TORCHREC_MTL_INDUCING_ATTENTION`` can name the backend instead.

Forward-mode derivatives are the reference's, and so are second derivatives of ``cpp``; where a backend has none, taking
them raises an `InputError`.
"""

from dataclasses import replace

import torch
from torch import Tensor

from torchrec_mtl.errors import InputError
from torchrec_mtl.ops import library
from torchrec_mtl.ops.backends import log_choice, requested_backend, takes_forward_mode
from torchrec_mtl.ops.inducing_attention import compact, cpp, cuda, reference, sdpa, triton
from torchrec_mtl.ops.inducing_attention.stack import (
    AdapterWeights,
    GeneratorWeights,
    InducingLayer,
    InducingStack,
    check_adapter,
    check_generator,
)
from torchrec_mtl.ops.shapes import check_heads, check_shape, sizes

BACKENDS = ("auto", "reference", "sdpa", "compact", "cpp", "triton", "cuda")
_OPERATION = "inducing_attention"
_ASKED = {"triton": triton, "cuda": cuda}  # by `_choose`, why they cannot run; the answer takes host time in each step
# Largest max(F, rows) * D at which the kernel is fastest, forward and backward, and forward alone; measured with AVX2
# and 512 KiB of cache a core.
_CPP_MAX_SIZE, _CPP_MAX_SIZE_FORWARD = 3072, 12288
_TRITON_MAX_DIM = 32  # to which the Triton kernels are faster than sdpa with gradients too; measured on an H200


def inducing_layer(inputs: Tensor, selection: Tensor, layer: InducingLayer, backend: str = "auto") -> Tensor:
    """One feature interaction learning layer of ASRG, TAFE eq. (17)-(20).

    A point with ``selection`` 0 has a zero query, hence uniform attention: it reads the mean of the values, not zero.
    That is what the equations say; what the point is to the next layer is said by `InducingStack.masked`.

    Args:
        inputs: ``H [B, F, D]``.
        selection: ``z [B, K]``, one scalar a point, shared by the heads.
        layer: the weights, and how they are used.
        backend: one of the names listed at the top of the module.

    Returns:
        ``Y [B, K, D]``.

    Raises:
        InputError: if a shape is not as above, or ``backend`` is not one of those names, is for a stack only, or
            cannot run.

    Example::

        >>> H, eye, one = torch.randn(5, 7, 4), torch.eye(4), torch.ones(4)
        >>> weights = GeneratorWeights(torch.randn(3, 4), eye, eye, eye, one, torch.zeros(4))
        >>> Y = inducing_layer(H, torch.zeros(5, 3), InducingLayer(weights, num_heads=2, residual="query"))
        >>> mean = torch.nn.functional.layer_norm(H.mean(1, keepdim=True), (4,))
        >>> torch.allclose(Y, mean.expand(5, 3, 4), atol=1e-5)
        True
    """
    _check_layer(inputs, selection, layer)
    name = requested_backend(_OPERATION, backend, BACKENDS)
    if name in ("compact", "cpp", "cuda"):
        raise InputError(f"the backend {name!r} is for a stack whose layers share one selection, not for one layer")
    if takes_forward_mode():
        name = _forward_mode(name)
    backends = {"auto": sdpa, "reference": reference, "sdpa": sdpa, "triton": triton}
    return backends[name].inducing_layer(inputs, selection, layer)


def inducing_stack(inputs: Tensor, selection: Tensor, stack: InducingStack, backend: str = "auto") -> Tensor:
    """``L`` layers of ASRG with one selection and TSA's adapters on each, TAFE eq. (17)-(22).

    Args:
        inputs: ``H [B, F, D]``.
        selection: ``z [B, K]``, one scalar a point, shared by the heads and the layers.
        stack: the weights, and how they are used.
        backend: one of the names listed at the top of the module.

    Returns:
        ``T^L [B, T, D]``, the adapted representations of the last layer.

    Raises:
        InputError: if a shape is not as above, or ``backend`` is not one of those names, or cannot run.

    Example::

        >>> square, row = torch.randn(2, 4, 4), torch.ones(2, 4)
        >>> layers = GeneratorWeights(torch.randn(2, 3, 4), square, square, square, row, row)
        >>> square, row = torch.randn(2, 6, 4, 4), torch.ones(2, 6, 4)
        >>> adapters = AdapterWeights(torch.randn(2, 6, 4), square, square, square, row, row)
        >>> stack = InducingStack(layers, adapters, num_heads=2)
        >>> inducing_stack(torch.randn(5, 7, 4), torch.rand(5, 3), stack).shape
        torch.Size([5, 6, 4])
    """
    if not isinstance(stack, InducingStack):
        raise InputError(f"`stack` (a {type(stack).__name__}) must be an `InducingStack`")
    weights = (stack.layers, stack.adapters)
    return _dispatch(inputs, selection, *weights, stack.num_heads, stack.residual, stack.z_grad, stack.masked, backend)


def adapter_layer(
    shared: Tensor,
    former: Tensor | None,
    adapter: AdapterWeights,
    num_heads: int,
    log_counts: Tensor | None = None,
) -> Tensor:
    """One layer of TSA, TAFE eq. (21)-(22), for all tasks at once.

    Args:
        shared: ``Y [B, R, D]``, the shared representation of this layer.
        former: ``[B, T, D]``, the adapted representations of the layer before; None in the first layer.
        adapter: the weights of one layer.
        num_heads: ``m``; must divide ``D``.
        log_counts: ``[B, R]``; row ``r`` of ``shared`` stands for ``exp(log_counts[:, r])`` equal rows. 1 by default.

    Returns:
        ``[B, T, D]``.

    Raises:
        InputError: if a shape is not as above, or ``num_heads`` does not divide ``D``.

    Example::

        >>> square, row = torch.eye(4).expand(3, 4, 4), torch.ones(3, 4)
        >>> weights = AdapterWeights(torch.zeros(3, 4), square, square, square, row, row)
        >>> adapter_layer(torch.randn(5, 7, 4), None, weights, num_heads=2).shape
        torch.Size([5, 3, 4])
    """
    batch, rows, dim = sizes("shared", shared, 3)
    if not isinstance(adapter, AdapterWeights):
        raise InputError(f"`adapter` (a {type(adapter).__name__}) must be `AdapterWeights`")
    num_tasks = check_adapter(adapter, dim)
    check_heads(num_heads, dim)
    if former is not None:
        check_shape("former", former, batch, num_tasks, dim)
    if log_counts is not None:
        check_shape("log_counts", log_counts, batch, rows)
    return sdpa.adapter_layer(shared, former, adapter, num_heads, log_counts)


def _check_layer(inputs: Tensor, selection: Tensor, layer: InducingLayer) -> None:
    batch, num_fields, dim = sizes("inputs", inputs, 3)
    if not isinstance(layer, InducingLayer):
        raise InputError(f"`layer` (a {type(layer).__name__}) must be an `InducingLayer`")
    num_points = check_generator(layer.weights, dim)
    check_shape("selection", selection, batch, num_points)
    check_heads(layer.num_heads, dim)
    if layer.residual == "input" and num_fields != num_points:
        raise InputError(f"`inputs` (of shape {list(inputs.shape)}) must have {num_points} rows for `residual` 'input'")


def _check_stack(inputs: Tensor, selection: Tensor, stack: InducingStack) -> None:
    batch, _, dim = sizes("inputs", inputs, 3)
    num_layers = len(stack.layers.points)
    check_shape("selection", selection, batch, check_generator(stack.layers, dim, num_layers))
    check_adapter(stack.adapters, dim, num_layers)
    check_heads(stack.num_heads, dim)
    for name, x in (("inputs", inputs), ("points", stack.layers.points), ("indicators", stack.adapters.indicators)):
        if not all(x.shape[-2:]):
            raise InputError(f"`{name}` (of shape {list(x.shape)}) must not be empty")


def _dispatch(
    inputs: Tensor,
    selection: Tensor,
    layers: GeneratorWeights,
    adapters: AdapterWeights,
    num_heads: int,
    residual: str,
    z_grad: str,
    masked: bool,
    name: str,
) -> Tensor:
    if not torch.jit.is_scripting():
        return _run(inputs, selection, InducingStack(layers, adapters, num_heads, residual, z_grad, masked), name)
    selections = [selection] * layers.points.shape[0]
    representations = reference.generate(inputs, selections, layers, num_heads, residual, z_grad, masked)
    return reference.adapt(representations, adapters, num_heads)


torch.fx.wrap("_dispatch")  # the choice depends on the tensors, so a traced graph makes it each time it runs


def _run(inputs: Tensor, selection: Tensor, stack: InducingStack, name: str) -> Tensor:
    _check_stack(inputs, selection, stack)
    name = requested_backend(_OPERATION, name, BACKENDS)
    if takes_forward_mode():
        name = _forward_mode(name)
    if name == "auto":
        name, reason = _choose(inputs, selection, stack)
        log_choice(_OPERATION, name, reason)
        if name in _ASKED:
            return _ASKED[name].run(inputs, selection, stack)
    if name == "cpp":
        return _in_cpp(inputs, selection, stack)
    backends = {"reference": reference, "sdpa": sdpa, "compact": compact, "triton": triton, "cuda": cuda}
    return backends[name].inducing_stack(inputs, selection, stack)


def _kernels_types(inputs: Tensor, selection: Tensor, stack: InducingStack) -> tuple[list[torch.dtype], torch.dtype]:
    """See `library.kernels_types`; the selection may have more bits than the rest, because it is a mask."""
    (of_inputs, *of_weights), dtype = library.kernels_types(inputs, *stack.layers, *stack.adapters)
    of_selection = of_inputs if selection.dtype == inputs.dtype else library.kernels_types(selection)[0][0]
    return [of_inputs, of_selection, *of_weights], dtype


def _in_cpp(inputs: Tensor, selection: Tensor, stack: InducingStack) -> Tensor:
    types, dtype = _kernels_types(inputs, selection, stack)
    tensors = (inputs, selection, *stack.layers, *stack.adapters)
    inputs, selection, *weights = [x.to(t) for x, t in zip(tensors, types, strict=True)]
    num = len(stack.layers)
    stack = replace(stack, layers=GeneratorWeights(*weights[:num]), adapters=AdapterWeights(*weights[num:]))
    return cpp.inducing_stack(inputs, selection, stack).to(dtype)


def _forward_mode(name: str) -> str:
    """Returns the backend that has forward-mode derivatives, if ``name`` allows it."""
    if name not in ("auto", "reference"):
        raise InputError(f"`backend` (={name!r}) must be 'auto' or 'reference' for forward-mode derivatives")
    return "reference"


def _choose(inputs: Tensor, selection: Tensor, stack: InducingStack) -> tuple[str, str]:
    """Returns the backend that "auto" takes, and why."""
    exporting, device = torch.compiler.is_exporting(), inputs.device.type
    if exporting and not (library.is_carried() and device == "cpu"):
        return "sdpa", "an exported program may run where there is no kernel"
    if device == "cuda":
        return _choose_on_a_gpu(inputs, stack)
    if device != "cpu":
        return "sdpa", f"there is no kernel for {device!r}"
    rows = num_points = selection.shape[1]
    types, _ = _kernels_types(inputs, selection, stack)
    reason = library.why_not(inputs, selection, *stack.layers, *stack.adapters, types=types)
    reason = None if reason is None else f"the C++ kernel cannot be used: {reason}"
    # what is exported is for inference
    largest = _CPP_MAX_SIZE if torch.is_grad_enabled() and not exporting else _CPP_MAX_SIZE_FORWARD
    if reason is None and max(inputs.shape[1], num_points) * inputs.shape[2] <= largest:
        return "cpp", "it is the fastest for such shapes"  # however many points are at 0: counting them takes time
    if stack.z_grad == "gated" and not torch.compiler.is_compiling():  # the compiler does not see the selection
        rows = compact.num_rows(selection, stack.masked)
    if reason is None:
        if max(inputs.shape[1], rows) * inputs.shape[2] <= largest:
            return "cpp", "it is the fastest for such shapes"
        reason = "the rows are too large for the C++ kernel"
    if 8 * rows <= 7 * num_points:  # measured: 0.8 to 0.9 of sdpa's time at 8 rows of 10 points
        return "compact", f"enough points are at 0, and {reason}"
    return "sdpa", f"few points are at 0, or it is not known how many, and {reason}"


def _choose_on_a_gpu(inputs: Tensor, stack: InducingStack) -> tuple[str, str]:
    """See docs/gpu.md. Points at 0 are not counted, which would wait for the device."""
    in_cpp = cuda.why_not(inputs, stack)
    if in_cpp is None:
        return "cuda", "it is the fastest for such shapes"
    reason = triton.why_not(inputs, stack.layers.points)
    if reason is None and stack.masked:
        reason = "it does not mask"
    if reason is None and torch.is_grad_enabled() and inputs.shape[2] > _TRITON_MAX_DIM:
        reason = "with gradients it is slower at so many dimensions"
    if reason is None:
        reason = triton.why_not_device(inputs.device.index)
    if reason is None:
        return "triton", f"it is faster than sdpa, and of the C++ kernel: {in_cpp}"
    return "sdpa", f"of the C++ kernel: {in_cpp}; of the Triton kernels: {reason}"


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
