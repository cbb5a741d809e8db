"""Command lines, and the objects that they name; a mistake is one sentence with the nearest correct name."""

import argparse
import importlib
import os
import re
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

import torchrec_mtl
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
        kind: class that the object must be an instance of, or several; `type` for a class.

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
    path = module.replace(".", "/")
    with faults_with_line((f"/{path}.py", f"/{path}/__init__.py"), f"{what} {text!r}: {module} cannot be imported"):
        imported = importlib.import_module(module)
    if not hasattr(imported, name):
        raise InputError(f"{what} {text!r}: {module} has no {name!r}")
    found = getattr(imported, name)
    if not isinstance(found, kind):
        kinds = " or a ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
        raise InputError(f"{what} {text!r} must be a {kinds}, not a {type(found).__name__}")
    return found


@contextmanager
def faults_with_line(files: tuple[str, ...], otherwise: str) -> Iterator[None]:
    """Turns what a user's own file raises while it runs into an `InputError` that gives the file's line.

    Args:
        files: how the path of the file may end.
        otherwise: beginning of the sentence if no line of the file is to blame.

    Example::

        >>> with faults_with_line(("shop.py",), "shop.py"):
        ...     exec(compile("first = 1\\nsecond = 1 / 0", "shop.py", "exec"))
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: shop.py, line 2: division by zero (ZeroDivisionError)
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        found = traceback.extract_tb(error.__traceback__)
        lines = [(frame.filename, frame.lineno) for frame in found if frame.filename.endswith(files)]
        if isinstance(error, SyntaxError) and error.filename is not None:
            lines.append((error.filename, error.lineno))
        place = f"{os.path.relpath(lines[-1][0])}, line {lines[-1][1]}: " if lines else ""
        kind = "" if isinstance(error, InputError) else f" ({type(error).__name__})"
        message = error.msg if isinstance(error, SyntaxError) else str(error) or "no reason given"
        reason = " ".join(message.split()) + _meant(message) + kind
        raise InputError(f"{place}{reason}" if lines else f"{otherwise} ({reason})") from error


def _meant(message: str) -> str:
    """The name of this library that an unknown one in Python's message was probably meant to be."""
    unknown = re.search(r"cannot import name '(\w+)' from 'torchrec_mtl|^name '(\w+)' is not defined", message)
    near = nearest(unknown[1] or unknown[2], torchrec_mtl.__all__) if unknown else None
    return f"; the nearest is {near!r}" if near else ""


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
