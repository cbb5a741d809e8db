"""Checks arguments against their annotations, so that a wrong type is one sentence where it is given."""

import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from numbers import Integral, Real
from typing import Any, Literal, ParamSpec, TypeVar

from torchrec_mtl.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")
_PLAIN = (bool, int, float, str, bytes, complex, type(None), list, tuple, dict)


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Decorates a function or constructor: it raises `InputError` if an argument is not of its annotation's type.

    Not for what a training step calls, where it would take time and `torch.fx` would have to trace it.

    Example::

        >>> @checked
        ... def double(number: int) -> int:
        ...     return 2 * number
        >>> double("three")
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: `number` (='three') must be of type int
    """
    signature, hints = inspect.signature(function), functools.cache(lambda: typing.get_type_hints(function))

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
                for each in value:
                    check_type(name, each, hints().get(name, Any))
            else:
                check_type(name, value, hints().get(name, Any))
        return function(*args, **kwargs)

    return call


def check_fields(record: Any) -> None:
    """Raises `InputError` unless each field of a dataclass is of its annotation's type; for ``__post_init__``."""
    hints = typing.get_type_hints(type(record))
    for field in fields(record):
        check_type(field.name, getattr(record, field.name), hints[field.name])


def check_type(name: str, value: object, annotation: Any) -> None:
    """Raises `InputError` unless ``value`` is of the type of ``annotation``.

    An int is also a float, but a bool is no number. A sequence is no string. What is called as a protocol says is of
    its type. A literal of strings is any string: the function itself says which it knows.

    Example::

        >>> check_type("sizes", [64, 32], Sequence[int])
        >>> check_type("sizes", [64, "32"], Sequence[int])
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: `sizes` (=[64, '32']) must be of type list of int
    """
    if not _is_of(value, annotation):
        shown = f"={value!r:.60}" if isinstance(value, _PLAIN) else f"a {type(value).__name__}"
        raise InputError(f"`{name}` ({shown}) must be of type {type_name(annotation)}")


def _is_of(value: Any, annotation: Any) -> bool:
    annotation = _unaliased(annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any or isinstance(annotation, TypeVar):
        return True
    if origin is Literal:
        return any(type(value) is type(known) for known in arguments)
    if origin in (typing.Union, types.UnionType):
        return any(_is_of(value, each) for each in arguments)
    if annotation in (int, float):
        return isinstance(value, Integral if annotation is int else Real) and not isinstance(value, bool)
    if origin is tuple and Ellipsis not in arguments:
        return isinstance(value, list | tuple) and len(value) == len(arguments) and all(map(_is_of, value, arguments))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            _is_of(key, arguments[0]) and _is_of(each, arguments[1]) for key, each in value.items()
        )
    if origin is tuple or (isinstance(origin, type) and issubclass(origin, Sequence)):
        is_sequence = hasattr(value, "__len__") and hasattr(value, "__getitem__")  # an array too
        not_meant = isinstance(value, str | bytes | Mapping)
        return is_sequence and not not_meant and all(_is_of(each, arguments[0]) for each in value)
    if origin is not None:
        return callable(value) if issubclass(origin, Callable) else True  # type: ignore[arg-type]
    if getattr(annotation, "_is_protocol", False):
        methods = [name for name in vars(annotation) if name == "__call__" or not name.startswith("_")]
        return all(hasattr(value, name) for name in methods)
    return isinstance(value, annotation)


def _unaliased(annotation: Any) -> Any:
    """What an alias of PEP 695, such as NumPy's `ArrayLike` from 2.5 on, stands for."""
    while hasattr(alias := typing.get_origin(annotation) or annotation, "__value__"):
        annotation = alias.__value__
    return annotation


def type_name(annotation: Any) -> str:
    """Returns how help and errors name a type.

    Example::

        >>> type_name(Sequence[int]), type_name(int | None), type_name(Literal["a", "b"])
        ('list of int', 'int or None', "one of 'a', 'b'")
    """
    annotation = _unaliased(annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(a) for a in arguments)
    if annotation is type(None):
        return "None"
    if origin is tuple and Ellipsis not in arguments:
        return f"({', '.join(type_name(a) for a in arguments)})"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return "mapping"
    if isinstance(origin, type) and issubclass(origin, Callable):  # type: ignore[arg-type]
        return "function"
    if origin is not None:
        return f"list of {type_name(arguments[0])}"
    if hasattr(annotation, "_fields"):
        return f"({', '.join(annotation._fields)})"
    return getattr(annotation, "__name__", str(annotation))
