"""What the operations' choice of a backend has in common."""

import functools
import logging
import os

import torch

from torchrec_mtl.errors import InputError

logger = logging.getLogger(__name__)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def requested_backend(operation: str, backend: str, backends: tuple[str, ...]) -> str:
    """The backend asked for: the argument or, where that is "auto", ``$TORCHREC_MTL_<OPERATION>`` if it is set.

    Raises:
        InputError: if it is none of ``backends``.

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
    """Says once in the log which backend "auto" takes, and why; of a compiled graph when it is traced."""
    _log_once(f"{operation}: backend {backend!r}, because {reason}")


@functools.cache
def _log_once(message: str) -> None:
    logger.info(message)
