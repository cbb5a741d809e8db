"""Command lines: a wrong one is one sentence, with the nearest right name."""

import argparse
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from torchrec_mtl.errors import InputError, nearest, not_one_of
from torchrec_mtl.metrics import METRICS, Metric


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors are `InputError`s; options may stand before, between and after settings."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """In the place of the usage and an exit."""
        raise InputError(message)

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """The command line.

        Raises:
            InputError: if an option is unknown or its value of another type.

        Example::

            >>> parser = Parser(prog="train")
            >>> _ = parser.add_argument("--models")
            >>> parser.parse(["--modles", "tafe"])
            Traceback (most recent call last):
            torchrec_mtl.errors.InputError: there is no option --modles; the nearest is --models
        """
        takes_settings = any(action.nargs == "*" for action in self._actions)
        known, unknown = (self.parse_known_intermixed_args if takes_settings else self.parse_known_args)(argv)
        for text in unknown:
            option = text.split("=")[0]
            if not option.startswith("-"):
                raise InputError(f"{text!r} is neither an option nor a setting of the form path=value")
            options = [name for action in self._actions for name in action.option_strings]
            near = nearest(option, options)
            raise InputError(f"there is no option {option}" + (f"; the nearest is {near}" if near else f": {options}"))
        return known


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
