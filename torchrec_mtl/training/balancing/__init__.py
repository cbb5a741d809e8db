"""How the losses of the tasks are balanced: from their losses or their gradients to a weight for each.

A method is a class with a record in `BALANCINGS`, by whose name ``training.balancing`` chooses it.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torchrec_mtl.errors import InputError, check_choice, not_one_of
from torchrec_mtl.kinds import ZILN
from torchrec_mtl.tasks import TaskForest
from torchrec_mtl.training.balancing.aligned_mtl import AlignedMTL
from torchrec_mtl.training.balancing.cagrad import CAGrad
from torchrec_mtl.training.balancing.dwa import DWA
from torchrec_mtl.training.balancing.famo import FAMO
from torchrec_mtl.training.balancing.gradnorm import GradNorm
from torchrec_mtl.training.balancing.method import BalancingMethod
from torchrec_mtl.training.balancing.mgda import MGDA
from torchrec_mtl.training.balancing.pcgrad import PCGrad
from torchrec_mtl.training.balancing.static import Static
from torchrec_mtl.training.balancing.uncertainty import Uncertainty

BALANCINGS: Mapping[str, Callable[..., BalancingMethod]] = {
    "uncertainty": Uncertainty,
    "dwa": DWA,
    "static": Static,
    "pcgrad": PCGrad,
    "mgda": MGDA,
    "cagrad": CAGrad,
    "gradnorm": GradNorm,
    "famo": FAMO,
    "aligned_mtl": AlignedMTL,
}

_OF_POSITIVE_LOSSES = ("uncertainty", "dwa", "gradnorm", "famo")  # which take their ratios or logarithms

__all__ = [
    "BALANCINGS",
    "DWA",
    "FAMO",
    "MGDA",
    "AlignedMTL",
    "BalancingMethod",
    "CAGrad",
    "GradNorm",
    "PCGrad",
    "Static",
    "Uncertainty",
]


def check_balancing(name: str, arguments: Mapping[str, Any]) -> None:
    """Raises `InputError` unless the method is known, or ``"sum"``, and has arguments of these names.

    Example::

        >>> check_balancing("dwa", {"temperatur": 1.0})
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: `balancing_args` of 'dwa' (='temperatur') must be one of \
['temperature', 'interval']; the nearest is 'temperature'
    """
    check_choice("balancing", name, ["sum", *BALANCINGS])
    taken = (
        [each for each in inspect.signature(BALANCINGS[name]).parameters if each != "tasks"] if name != "sum" else []
    )
    for argument in arguments:
        if argument not in taken:
            raise InputError(not_one_of(f"`balancing_args` of {name!r}", argument, taken))


def make_balancing(name: str, tasks: TaskForest, arguments: Mapping[str, Any]) -> BalancingMethod | None:
    """Makes the method for the tasks; None for ``"sum"``.

    Raises:
        InputError: if the method is unknown, or an argument is unknown, of another type, missing or out of its range.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> make_balancing("static", TaskChain(["click", "purchase"]), {"weights": [1.0, 2.0]}).weights
        (1.0, 2.0)
    """
    check_balancing(name, arguments)
    if name == "sum":
        return None
    for task in tasks.values:
        if isinstance(task.kind, ZILN) and name in _OF_POSITIVE_LOSSES:
            raise InputError(
                f"`balancing` (={name!r}) must be another for {task.name!r}: the loss of `ZILN` can be below 0"
            )
    for argument, parameter in inspect.signature(BALANCINGS[name]).parameters.items():
        if parameter.default is parameter.empty and argument not in (*arguments, "tasks"):
            raise InputError(f"`{argument}` of `balancing` {name!r} must be given: it has no default")
    return BALANCINGS[name](tasks, **arguments)
