"""Calls the libraries of CUDA C++ kernels: memory, the arguments' struct, and the stream."""

import ctypes
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from torchrec_mtl.errors import InputError
from torchrec_mtl.ops.inducing_attention.cuda.instances import Instance, find, instance

WEIGHTS_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
EMULATED_PROCESSORS = 3
RESIDUALS = ("none", "query", "input")
_NUM_WEIGHTS = 12
_ALIGNMENT = 16  # bytes


_SIZES = ["batch", "fields", "points", "dim", "width", "layers", "tasks"]
_SIZES += ["first_residual", "residual", "masked", "weights_type", "processors"]
_TENSORS = ["packed", "output", "rows", "outputs", "contexts", "adapted"]
_TENSORS += ["upstream", "d_inputs", "d_selection", "d_weights", "workspace"]


class _Sizes(ctypes.Structure):
    """As in `arguments.cuh`."""

    _fields_ = tuple((name, ctypes.c_int) for name in _SIZES)


class _Arguments(ctypes.Structure):
    """As in `arguments.cuh`."""

    _fields_ = (
        ("sizes", _Sizes),
        ("inputs", ctypes.c_void_p),
        ("selection", ctypes.c_void_p),
        ("weights", ctypes.c_void_p * _NUM_WEIGHTS),
        *((name, ctypes.c_void_p) for name in _TENSORS),
    )


def instance_of(precision: str, inputs: Tensor, weights: Sequence[Tensor], num_heads: int) -> Instance:
    """Returns the instance for padded inputs ``[B, F, width]``."""
    return instance(precision, num_heads, weights[0].shape[2], inputs.shape[1])


def width_of(dim: int) -> int:
    """Returns to how many numbers a row of ``D`` must be padded: a lane reads its share of them whole, or none.

    Example::

        >>> [width_of(dim) for dim in (18, 20, 32)]
        [18, 24, 32]
    """
    blocks = instance("Tf32", 1, dim, 1).dim_blocks
    return 8 * blocks if dim % (2 * blocks) else dim


def _padded_dim(dim: int) -> int:
    return 8 * instance("Tf32", 1, dim, 1).dim_blocks


def _kept_words(inputs: Tensor, weights: Sequence[Tensor], num_heads: int, keep: bool) -> dict[str, int]:
    """Returns how many words of memory each array takes that the forward writes besides its output.

    Each but the last takes a multiple of 16 bytes.
    """
    batch, (layers, num_points, dim), tasks = inputs.shape[0], weights[0].shape, weights[6].shape[1]
    padded, slots, itemsize = _padded_dim(dim), batch * layers if keep else 0, inputs.dtype.itemsize
    return {
        "packed": packed_words(weights, num_heads, inputs.dtype),
        "contexts": batch * layers * tasks * num_heads * padded * itemsize // 4,
        "outputs": slots * num_points * padded * itemsize // 4,
        "adapted": slots * tasks * padded,
        "rows": batch,
    }


def to_keep(inputs: Tensor, weights: Sequence[Tensor], num_heads: int, keep: bool) -> Tensor:
    """Allocates, at once, what the forward writes besides its output; with ``keep``, what only the backward reads."""
    return inputs.new_empty(sum(_kept_words(inputs, weights, num_heads, keep).values()), dtype=torch.int32)


def packed_words(weights: Sequence[Tensor], num_heads: int, dtype: torch.dtype) -> int:
    """Returns the number of words that the packed weights take, as `layout.cuh` has it."""
    (layers, num_points, dim), tasks = weights[0].shape, weights[6].shape[1]
    padded, words = _padded_dim(dim), dtype.itemsize  # two numbers
    rows = layers * ((num_heads + 1) * num_points + 8 * -(-tasks * num_heads // 8))
    squares = 4 * layers * (1 + tasks) * 32  # rows of a square and of its transpose, of value and output
    return padded * (rows + squares) * words // 4 + 2 * padded * layers * (1 + tasks)


def like_output(inputs: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Allocates ``T^L [B, T, width]``."""
    return inputs.new_empty(inputs.shape[0], weights[6].shape[1], inputs.shape[2])


def _aligned(x: Tensor) -> Tensor:
    x = x.contiguous()
    return x.clone() if x.data_ptr() % _ALIGNMENT else x


@functools.cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return EMULATED_PROCESSORS
    found: int = torch.cuda.get_device_properties(device).multi_processor_count
    return found


def _sizes(
    inputs: Tensor, selection: Tensor, weights: Sequence[Tensor], residuals: Sequence[str], masked: bool
) -> _Sizes:
    batch, fields, width = inputs.shape
    layers, tasks, dim = weights[6].shape
    on_gpu = inputs.device.type == "cuda"
    processors = (
        torch.cuda.get_device_properties(inputs.device).multi_processor_count if on_gpu else EMULATED_PROCESSORS
    )
    kinds = [RESIDUALS.index(x) for x in residuals]
    types = WEIGHTS_TYPES[weights[0].dtype]
    return _Sizes(batch, fields, selection.shape[1], dim, width, layers, tasks, *kinds, masked, types, processors)


def kernels_of(of: Instance, device: torch.device) -> ctypes.CDLL:
    """Returns the library of an instance for a device."""
    kernels = find(of, device.type != "cuda")
    if kernels is None:  # in a program that was compiled or exported elsewhere
        raise InputError(f"the backend 'cuda' cannot be used: it is not built for {of} on this machine")
    return kernels


def _workspace_size(of: Instance, device: torch.device, sizes: _Sizes) -> int:
    size: int = kernels_of(of, device).workspace_size(ctypes.byref(sizes))
    return size


def _call(function: str, of: Instance, device: torch.device, arguments: _Arguments) -> None:
    kernels = kernels_of(of, device)
    run, pointer = getattr(kernels, function), ctypes.byref(arguments)
    if device.type == "cuda":
        with torch.cuda.device(device):
            error = run(pointer, torch.cuda.current_stream(device).cuda_stream)
    else:
        error = run(pointer, None)
    if error:
        raise InputError(f"the backend 'cuda' cannot be used: {kernels.describe(error).decode()}")


def _arguments(
    inputs: Tensor,
    selection: Tensor,
    weights: Sequence[Tensor],
    kept: Tensor,
    num_heads: int,
    residuals: Sequence[str],
    masked: bool,
    keep: bool = True,
) -> _Arguments:
    arguments = _Arguments(_sizes(inputs, selection, weights, residuals, masked))
    arguments.inputs, arguments.selection = inputs.data_ptr(), selection.data_ptr()
    arguments.weights = (ctypes.c_void_p * _NUM_WEIGHTS)(*(x.data_ptr() for x in weights))
    at = kept.data_ptr()
    for name, words in _kept_words(inputs, weights, num_heads, keep).items():
        setattr(arguments, name, at if words else None)
        at += 4 * words
    return arguments


def launch_forward(
    inputs: Tensor,
    selection: Tensor,
    weights: Sequence[Tensor],
    num_heads: int,
    residuals: Sequence[str],
    masked: bool,
    precision: str,
    keep: bool,
) -> list[Tensor]:
    """Returns the output and what else was written."""
    inputs, selection, *weights = (_aligned(x) for x in (inputs, selection, *weights))
    output = like_output(inputs, weights)
    kept = to_keep(inputs, weights, num_heads, keep)
    arguments = _arguments(inputs, selection, weights, kept, num_heads, residuals, masked, keep)
    arguments.output = output.data_ptr()
    _call("run_forward", instance_of(precision, inputs, weights, num_heads), inputs.device, arguments)
    return [output, kept]


def like_gradients(inputs: Tensor, selection: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
    """Allocates dH, dz, and the gradients of the weights in one tensor."""
    flat = inputs.new_empty(sum(x.numel() for x in weights), dtype=torch.float32)
    return [inputs.new_empty(inputs.shape), selection.new_empty(selection.shape), flat]


def launch_backward(
    upstream: Tensor,
    inputs: Tensor,
    selection: Tensor,
    weights: Sequence[Tensor],
    kept: Tensor,
    num_heads: int,
    residuals: Sequence[str],
    masked: bool,
    precision: str,
) -> list[Tensor]:
    """Returns what `like_gradients` allocates."""
    upstream, inputs, selection, *weights = (_aligned(x) for x in (upstream, inputs, selection, *weights))
    gradients = like_gradients(inputs, selection, weights)
    arguments = _arguments(inputs, selection, weights, kept, num_heads, residuals, masked)
    of = instance_of(precision, inputs, weights, num_heads)
    workspace = inputs.new_empty(_workspace_size(of, inputs.device, arguments.sizes), dtype=torch.float32)
    names = ("upstream", "d_inputs", "d_selection", "d_weights", "workspace")
    for name, x in zip(names, (upstream, *gradients, workspace), strict=True):
        setattr(arguments, name, x.data_ptr())
    _call("run_backward", of, inputs.device, arguments)
    return gradients
