"""Command lines, and the objects that they name; a mistake is one sentence with the nearest correct name."""

import argparse
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from torchrec_mtl.errors import InputError, nearest, not_one_of
from torchrec_mtl.metrics import METRICS, Metric

REDACT_HELP = "leave ids and other values of the data out of messages, saved batches and bad_rows.tsv"


class Parser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` that raises `InputError`; options may stand before, between and after settings."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Raises `InputError` instead of printing the usage and exiting."""
        raise InputError(message)

    def parse(self, argv: Sequence[str] | None) -> argparse.Namespace:
        """Parses the command line.

        Raises:
            InputError: if an option is unknown or its value is of another type.

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
    """Looks up ``known[text]``, or imports what ``package.module:NAME`` names.

    The module may be in the present folder. Only text that a user types on a command line is looked up here, never text
    that is read from a file, since an import runs code.

    Args:
        what: kind of thing for error messages, such as "model".
        text: text that was typed.
        known: this library's objects by name.
        kind: class that the object must be an instance of; `type` for a class.

    Raises:
        InputError: if there is no such object, or it is of another kind.

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
        sys.path.append(os.getcwd())  # as `python -m` does
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
    """The metrics named in ``text``, separated by commas: this library's by name, others as ``package.module:METRIC``.

    A metric from another module gets its name there in lower case: ``my.metrics:AVERAGE_PRECISION`` is called
    "average_precision".

    Raises:
        InputError: if there is no such metric, or one from another module has the name of one of this library's.

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
