"""What every preparation of raw files does first and last."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torchrec_mtl.data.publish import build_once
from torchrec_mtl.data.raw.arguments import RawArguments
from torchrec_mtl.data.raw.bad_rows import BadRows
from torchrec_mtl.data.schema import Schema
from torchrec_mtl.errors import InputError


def silent(stage: str, rows: int, share: float) -> None:
    """No progress bar."""


def prepare_once(
    arguments: RawArguments, output: str | Path, prepare: Callable[[Path, BadRows], Schema], notes: dict[str, str]
) -> Path:
    """The prepared data set ``output``, built first if it is not there yet.

    Args:
        arguments: saved with it.
        output: its own folder.
        prepare: writes it into a folder; the schema that it returns gets its notes here.
        notes: what a reader must know.

    Returns:
        ``output`` as a path.

    Raises:
        InputError: if ``output`` was prepared with other arguments.
    """

    def build(folder: Path) -> Schema:
        with BadRows(arguments.bad_rows, arguments.bad_rows_limit, folder) as bad_rows:
            schema = prepare(folder, bad_rows)
        return replace(schema, notes={**notes, "preparation": str(arguments)})

    directory = build_once(output, build)
    told = Schema.load(directory).notes.get("preparation")
    if told != str(arguments):
        raise InputError(f"`output` (={str(output)!r}) must be a new folder: it was prepared with {told}")
    return directory
