"""What a command line names: one of ours by its name, one of yours as ``package.module:NAME``."""

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

from torchrec_mtl.errors import InputError, not_one_of
from torchrec_mtl.metrics import METRICS, Metric

T = TypeVar("T")


def named(what: str, text: str, known: Mapping[str, T], kind: Any) -> T:
    """``known[text]``, or what stands under ``NAME`` in a module that is imported for it.

    The module may lie in the folder that the program is run in. Only what a user types on a command line comes here,
    never what is read from a file: an import runs code.

    Args:
        what: "model", say, for the error's sentence.
        text: what was typed.
        known: ours.
        kind: the class that it must be an instance of; or `type`, for a class.

    Raises:
        InputError: if there is no such thing, or it is of another kind.

    Example::

        >>> named("number", "math:pi", {"two": 2.0}, float)
        3.141592653589793
    """
    if text in known:
        return known[text]
    module, colon, name = text.partition(":")
    if not (colon and module and name):
        raise InputError(f"{not_one_of(what, text, known)}; one of your own is package.module:NAME")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # as `python -m` has it
    try:
        found = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise InputError(f"{what} {text!r}: {module} cannot be imported ({error})") from error
    except AttributeError as error:
        raise InputError(f"{what} {text!r}: {module} has no {name!r}") from error
    if not isinstance(found, kind):
        raise InputError(f"{what} {text!r} must be a {kind.__name__}, not a {type(found).__name__}")
    return found


def named_metrics(text: str) -> dict[str, Metric]:
    """The metrics that ``text`` names by commas: by their name, or of your own by ``package.module:METRIC``.

    One of your own is called as in its module, in lower case: ``my.metrics:AVERAGE_PRECISION`` is "average_precision".

    Raises:
        InputError: if there is no such metric, or one of your own has the name of ours.

    Example::

        >>> list(named_metrics("auc,log_loss"))
        ['auc', 'log_loss']
    """
    found: dict[str, Metric] = {}
    for each in text.split(","):
        name = each.rpartition(":")[2].lower() if ":" in each else each
        found[name] = named("metric", each, METRICS, Metric)
        if ":" in each and name in METRICS:
            raise InputError(f"metric {each!r} must not have the name of one of {list(METRICS)}")
    return found
