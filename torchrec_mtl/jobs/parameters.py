"""The settings that a constructor accepts: name, type, default, and the description in its docstring.

jsonargparse parses values and checks them against annotations.
"""

import ast
import inspect
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any

from docstring_parser import parse as parse_docstring
from jsonargparse import ArgumentError, ArgumentParser

from torchrec_mtl.argument_types import type_name
from torchrec_mtl.errors import InputError

_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Parameter:
    """One setting.

    Args:
        path: path of the setting, such as ``model_args.num_layers``.
        annotation: type of the setting, made of plain types.
        default: value of the setting if nothing else is given.
        description: sentence that describes the setting.
    """

    path: str
    annotation: Any
    default: Any
    description: str

    @property
    def kind(self) -> str:
        """The type as help and errors name it.

        Example::

            >>> Parameter("x", typing.Literal["a", "b"], "a", "").kind, Parameter("x", int | None, 1, "").kind
            ("one of 'a', 'b'", 'int or None')
        """
        return type_name(self.annotation)

    def parse(self, text: str) -> Any:
        """Parses ``text``, written as in JSON, YAML or Python; a bare word is a string.

        Raises:
            InputError: if the value is of another type.

        Example::

            >>> Parameter("dropout", float, 0.0, "").parse("1"), Parameter("sizes", list[int], [], "").parse("(64, 32)")
            (1.0, [64, 32])
            >>> Parameter("dropout", float, 0.0, "").parse("lots")
            Traceback (most recent call last):
            torchrec_mtl.errors.InputError: `dropout` (='lots') must be of type float
        """
        try:
            value = ast.literal_eval(text)  # Python's (64, 32), None and True
            written = value if isinstance(value, str) else json.dumps(value, allow_nan=False)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            written = text
        parser = ArgumentParser(exit_on_error=False, add_help=False)
        parser.add_argument("--value", type=self.annotation)
        try:
            value = parser.parse_args([f"--value={written}"]).value
        except (ArgumentError, OverflowError, SystemExit) as error:  # a number may be too large for its type
            raise InputError(f"`{self.path}` (={text!r}) must be {self.rule}") from error
        if value is None and not _allows_none(self.annotation):
            raise InputError(f"`{self.path}` (={text!r}) must be {self.rule}")
        return value

    @property
    def rule(self) -> str:
        """What a value must be."""
        return self.kind if self.kind.startswith("one of") else f"of type {self.kind}"


def parameters(
    taker: Callable[..., Any], prefix: str, given: Mapping[str, Any], skip: Sequence[str] = ()
) -> dict[str, Parameter]:
    """The settings of a constructor by path; a default that is a frozen dataclass contributes settings of its own.

    Args:
        taker: class or function that accepts the settings.
        prefix: prefix of the paths.
        given: values that replace defaults of the signature.
        skip: arguments that are not settings.

    Example::

        >>> from torchrec_mtl.losses import CalibratedLoss
        >>> for parameter in parameters(CalibratedLoss, "loss_args.", {}, skip=["tasks"]).values():
        ...     print(parameter.path, parameter.default, parameter.kind)
        loss_args.alpha 0.6 float
        loss_args.task_weights None list of float or None
    """
    target = taker.__init__ if inspect.isclass(taker) else taker
    hints = typing.get_type_hints(target)
    described = parse_docstring(taker.__doc__ or "").params
    descriptions = {p.arg_name: " ".join((p.description or "").replace("``", "").split()) for p in described}
    found: dict[str, Parameter] = {}
    for name, parameter in inspect.signature(taker).parameters.items():
        value = given.get(name, parameter.default)
        path = prefix + name
        if name in skip or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if is_dataclass(value) and not isinstance(value, type):
            found |= parameters(type(value), f"{path}.", vars(value))
        elif _is_plain(hints.get(name)):
            found[path] = Parameter(path, hints[name], value, descriptions.get(name, ""))
    return found


def _is_plain(annotation: Any) -> bool:
    """Whether values can be written as JSON: a setting never names a class to import or a file to read."""
    if annotation in _PLAIN or typing.get_origin(annotation) is typing.Literal:
        return True
    if isinstance(annotation, type) and issubclass(annotation, tuple) and hasattr(annotation, "_fields"):
        return True  # a named tuple: its values in a list
    arguments = [a for a in typing.get_args(annotation) if a is not Ellipsis]
    return bool(arguments) and all(a is Any or _is_plain(a) for a in arguments)


def _allows_none(annotation: Any) -> bool:
    return annotation in (None, type(None)) or any(map(_allows_none, typing.get_args(annotation)))
