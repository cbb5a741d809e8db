"""Files that are there whole or not at all."""

import os
from pathlib import Path

from torchrec_mtl.errors import InputError


def make_folder(folder: Path, argument: str) -> None:
    """Makes ``folder`` and those above it, where they are not there yet.

    Raises:
        InputError: if that cannot be; names the argument that asked for it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"`{argument}` (={str(folder)!r}) must be a folder that can be made: {error.strerror}"
        ) from error


def write_whole(file: Path, text: str) -> None:
    """Writes ``text`` beside ``file`` and gives it its name in one rename."""
    aside = file.with_name(file.name + ".partial")
    aside.write_text(text)
    os.replace(aside, file)
