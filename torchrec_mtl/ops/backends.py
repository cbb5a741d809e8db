"""How every operation finds the backend asked for, and logs the one that "auto" takes."""

import functools
import logging
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torchrec_mtl.errors import InputError

logger = logging.getLogger(__name__)


def registered_name(operation: str) -> str:
    """Returns the name under which PyTorch knows a custom operation.

    These names belong to the process. A copy of this library that `torch.package` has loaded uses others, so that it
    does not replace the operations of the library that is installed, or of another package.

    Example::

        >>> registered_name("small_attention")
        'torchrec_mtl::small_attention'
    """
    package = re.match(r"<torch_package_(\d+)>", __name__)
    return f"torchrec_mtl{f'_package_{package[1]}' if package else ''}::{operation}"


def compute_dtype(inputs: Tensor) -> torch.dtype:
    """Returns the type in which an operation on ``inputs`` computes: autocast's, where that is on.

    Example::

        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     compute_dtype(torch.ones(2))
        torch.bfloat16
    """
    device = inputs.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inputs.dtype


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def requested_backend(operation: str, backend: str, backends: tuple[str, ...]) -> str:
    """Returns the backend asked for: the argument or, if that is "auto", ``$TORCHREC_MTL_<OPERATION>`` where it is set.

    Raises:
        InputError: if it is not one of ``backends``.

    Example::

        >>> requested_backend("attention", "reference", ("auto", "reference"))
        'reference'
    """
    variable = f"TORCHREC_MTL_{operation.upper()}"
    if backend == "auto" and os.environ.get(variable):
        backend, name = os.environ[variable], f"${variable}"
    else:
        name = "`backend`"
    if backend not in backends:
        raise InputError(f"{name} (={backend!r}) must be one of {list(backends)}")
    return backend


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def log_choice(operation: str, backend: str, reason: str) -> None:
    """Logs, once, which backend "auto" takes and why; for a compiled graph, when the graph is traced."""
    _log_once(f"{operation}: backend {backend!r}, because {reason}")


@functools.cache
def _log_once(message: str) -> None:
    logger.info(message)


def takes_forward_mode() -> bool:
    """Returns whether derivatives are being taken in forward mode, as `torch.func.jvp` does.

    PyTorch gives the result of an operation of ours no tangent, without an error.
    """
    return forward_ad._current_level >= 0


def differentiable_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], upstream: Tensor
) -> list[Tensor | None]:
    """Returns the gradients of ``function(*inputs)``, which can be differentiated again, of inputs that require one."""
    with torch.enable_grad():
        inputs = [x.view_as(x) for x in inputs]  # one tensor may be two inputs
        wanted = [x for x in inputs if x.requires_grad]
        found = iter(torch.autograd.grad(function(*inputs), wanted, upstream, create_graph=True))
    return [next(found) if x.requires_grad else None for x in inputs]


def refuse_missing_second_derivatives(*inputs: Tensor) -> None:
    """Makes second derivatives an error with the way out, if PyTorch has none of the operation that reads ``inputs``.

    Call it before that operation, with tensors that nothing else reads. PyTorch knows what is missing only once the
    first derivatives are there.
    """
    if torch.compiler.is_compiling():  # a compiled graph has no second derivatives at all
        return
    for x in inputs:
        if x.requires_grad:
            x.register_hook(_watch)


def _watch(gradient: Tensor | None) -> None:
    if (
        gradient is not None
        and gradient.grad_fn is not None
        and gradient.grad_fn.name() == "torch::autograd::NotImplemented"
    ):
        gradient.register_hook(refuse_second_derivatives)


def refuse_second_derivatives(*_: Any) -> None:
    """Raises an `InputError` with the way out; a backward function."""
    raise InputError("`backend` must be 'reference' for second derivatives, which fused kernels do not have")
