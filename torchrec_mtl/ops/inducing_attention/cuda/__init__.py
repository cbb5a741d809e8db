"""The `cuda` backend: kernels in CUDA C++ for up to 32 dimensions, 64 points and 64 fields; 1, 2 or 4 heads.

A warp computes a sample, whose rows it holds in registers; identical rows are computed once. Beyond 32 rows the
registers do not suffice, and memory takes some of them. float32 is computed by three products of tf32, or by one where
`torch.set_float32_matmul_precision` allows it.

`build` compiles the kernels, `instances` finds the libraries, `launch` calls them, `operators` makes them PyTorch
operators. On a CPU they run only where ``TORCHREC_MTL_CUDA_EMULATED=1`` asks for the emulation: for tests.
"""

import os

import torch
from torch import Tensor

from torchrec_mtl.errors import InputError
from torchrec_mtl.ops.backends import compute_dtype
from torchrec_mtl.ops.inducing_attention.cuda import instances
from torchrec_mtl.ops.inducing_attention.stack import InducingStack

_BUILD = "python -m torchrec_mtl.ops.inducing_attention.cuda.build"


def why_not(inputs: Tensor, stack: InducingStack) -> str | None:
    """Returns why the kernels cannot take inputs ``[B, F, D]`` and a stack; None if they can."""
    if stack.z_grad != "gated":
        return f"it has no gradient of z where z is 0, as `z_grad` (={stack.z_grad!r}) asks for"
    fields, (points, dim) = inputs.shape[1], stack.layers.points.shape[1:]
    device = inputs.device
    return why_not_sizes(device.type, device.index, compute_dtype(inputs), stack.num_heads, dim, points, fields)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def why_not_sizes(
    device: str, index: int | None, dtype: torch.dtype, heads: int, dim: int, points: int, fields: int
) -> str | None:
    """Returns why the kernels cannot compute a stack of these sizes in ``dtype`` on a device; None if they can."""
    emulated = device == "cpu" and os.environ.get("TORCHREC_MTL_CUDA_EMULATED") == "1"
    if device != "cuda" and not emulated:
        return f"it runs on a GPU, and the inputs are on {device!r}"
    if dtype not in instances.PRECISIONS:
        return f"it computes in float32, bfloat16 and float16, not {dtype}"
    if heads not in instances.HEADS:
        return f"it takes 1, 2 or 4 heads, not {heads}; 'triton' takes any"
    most = (instances.MAX_DIM, instances.MAX_POINTS, instances.MAX_FIELDS)
    if dim > most[0] or points > most[1] or fields > most[2]:
        of_most, of_sizes = (f"{x} dimensions, {y} points and {z} fields" for x, y, z in (most, (dim, points, fields)))
        return f"it takes up to {of_most}, not {of_sizes}; 'triton' takes more"
    if not emulated:
        capability = torch.cuda.get_device_capability(index)
        if capability < instances.CAPABILITY:
            needed, found = (".".join(map(str, x)) for x in (instances.CAPABILITY, capability))
            return f"it needs a GPU of compute capability {needed}, and this one has {found}; 'sdpa' runs on any"
    precision = instances.precision_of(dtype)
    if instances.find(instances.instance(precision, heads, dim, fields), emulated) is None:
        kind = "tf32" if precision == "Tf32" else str(dtype).removeprefix("torch.")
        sizes = f"--dim {dim} --heads {heads} --fields {fields} --types {kind}"
        return f"it is not built for these sizes: run `{_BUILD} {sizes}{' --emulated' if emulated else ''}`"
    return None


def inducing_stack(inputs: Tensor, selection: Tensor, stack: InducingStack) -> Tensor:
    """Eq. (17)-(22); shapes as in the front door, which checks them.

    Raises:
        InputError: if the kernels cannot run here, or do not cover a size.
    """
    reason = why_not(inputs, stack)
    if reason is not None:
        raise InputError(f"the backend 'cuda' cannot be used: {reason}")
    return run(inputs, selection, stack)


def run(inputs: Tensor, selection: Tensor, stack: InducingStack) -> Tensor:
    """`inducing_stack` where `why_not` was asked and found nothing."""
    from torchrec_mtl.ops.inducing_attention.cuda import operators

    return operators.inducing_stack(inputs, selection, stack)
