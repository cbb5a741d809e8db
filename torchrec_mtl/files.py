"""Files that are there whole or not at all."""

import os
from pathlib import Path


def write_whole(file: Path, text: str) -> None:
    """Writes ``text`` beside ``file`` and gives it its name in one rename."""
    aside = file.with_name(file.name + ".partial")
    aside.write_text(text)
    os.replace(aside, file)
