"""Command lines: a wrong one is one sentence, with the nearest right name."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from torchrec_mtl.errors import InputError, nearest


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
