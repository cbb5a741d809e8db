"""The errors for a user's mistake and for a run that cannot continue, and the checks that raise them."""

import difflib
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Real

LARGEST = 2**31 - 1  # size or count that an argument may have
REDACTED = "<redacted>"
_redacts: ContextVar[bool] = ContextVar("redacts", default=False)


class InputError(ValueError):
    """A wrong argument, file or row, reported in one sentence that gives its name, the rule and the value.

    Programs of this library print the sentence and exit with status 2, without a traceback.

    Example::

        >>> raise InputError("`num_heads` (=3) must divide `embedding_dim` (=8)")
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: `num_heads` (=3) must divide `embedding_dim` (=8)
    """


class TrainingError(RuntimeError):
    """A run that cannot continue although no argument is wrong (a NaN loss, a full disk), reported in one sentence.

    Programs of this library print the sentence and exit with status 1. The last checkpoint is kept.
    """


@contextmanager
def redacted(redact: bool = True) -> Iterator[None]:
    """Leaves the values of data, such as users' ids, out of messages and of the files that bad data is saved to.

    It holds in the block, in this thread, and in threads that this library starts there. Names, rows and lines stay.

    Example::

        >>> with redacted():
        ...     print(f"row 3: id (={shown(40389)}) must be below 9")
        row 3: id (=<redacted>) must be below 9
    """
    token = _redacts.set(redact)
    try:
        yield
    finally:
        _redacts.reset(token)


def redacts() -> bool:
    """Whether values of data are left out, see `redacted`."""
    return _redacts.get()


def shown(value: object) -> str:
    """A value of the data for a message: its text, or `REDACTED` within `redacted`."""
    return REDACTED if redacts() else str(value)


def nearest(text: str, known: Iterable[object]) -> str | None:
    """Returns the known name that ``text`` was probably meant to be, or None if it resembles none.

    Example::

        >>> nearest("taffe", ["bpcm", "tafe"])
        'tafe'
    """
    return next(iter(difflib.get_close_matches(text, [str(name) for name in known], n=1)), None)


def not_one_of(what: str, value: object, known: Iterable[object]) -> str:
    """Returns the sentence that rejects an unknown value, with the known ones and the nearest of them.

    Example::

        >>> not_one_of("model", "taffe", ["bpcm", "tafe"])
        "model 'taffe' must be one of ['bpcm', 'tafe']; the nearest is 'tafe'"
    """
    names = list(known)
    near = nearest(str(value), names)
    subject = f"{what} (={value!r})" if what.startswith("`") else f"{what} {value!r}"
    return f"{subject} must be one of {names}" + (f"; the nearest is {near!r}" if near else "")


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raises `InputError` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise InputError(f"`{name}` (={value!r}) must be one of {list(choices)}")


def check_file_name(what: str, name: object) -> None:
    """Raises `InputError` unless ``name`` can be that of a file, since results, tags and tables are named after it.

    Example::

        >>> check_file_name("`name`", "../shop")
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: `name` (='../shop') must be a name of 1 to 200 bytes without slashes
    """
    if not (
        isinstance(name, str)
        and name.isprintable()
        and name not in (".", "..")
        and not {"/", "\\"} & set(name)
        and 1 <= len(name.encode()) <= 200
    ):
        raise InputError(f"{what} (={name!r:.60}) must be a name of 1 to 200 bytes without slashes")


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise InputError(f"`{name}` (={value!r:.60}) must be a number")


def check_at_least(least: float, **values: float) -> None:
    """Raises `InputError` unless all ``values`` are finite numbers of at least ``least``.

    Example::

        >>> check_at_least(1, num_layers=0)
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: `num_layers` (=0) must be at least 1
    """
    for name, value in values.items():
        _check_number(name, value)
        if not least <= value < math.inf:  # false for NaN too
            raise InputError(f"`{name}` (={value}) must be at least {least}")
        if value > LARGEST and isinstance(value, int):
            raise InputError(f"`{name}` (={value}) must be at most {LARGEST}")


def check_share(**values: float) -> None:
    """Raises `InputError` unless all ``values`` are between 0 and 1, such as dropout probabilities.

    Example::

        >>> check_share(dropout=1.5)
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: `dropout` (=1.5) must be from 0 to 1
    """
    for name, value in values.items():
        _check_number(name, value)
        if not 0 <= value <= 1:
            raise InputError(f"`{name}` (={value}) must be from 0 to 1")


def check_positive_share(**values: float) -> None:
    """Raises `InputError` unless all ``values`` are above 0 and at most 1, such as shares of rows to keep.

    Example::

        >>> check_positive_share(sample=0.0)
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: `sample` (=0.0) must be above 0 and at most 1
    """
    for name, value in values.items():
        _check_number(name, value)
        if not 0 < value <= 1:  # false for NaN too
            raise InputError(f"`{name}` (={value}) must be above 0 and at most 1")


def check_sizes(least: int = 0, **sizes: Sequence[int]) -> None:
    """Raises `InputError` unless each of ``sizes`` holds valid layer widths, for at least ``least`` layers.

    Example::

        >>> check_sizes(tower_layer_sizes=(64, 0))
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: `tower_layer_sizes` (=[64, 0]) must be widths of 1 to 2147483647
    """
    for name, widths in sizes.items():
        if len(widths) < least:
            raise InputError(f"`{name}` (={list(widths)}) must have at least {'one layer' if least == 1 else least}")
        if not all(1 <= width <= LARGEST for width in widths):
            raise InputError(f"`{name}` (={list(widths)}) must be widths of 1 to {LARGEST}")
