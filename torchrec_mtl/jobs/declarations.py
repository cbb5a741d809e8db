"""Tables that a command line names: ``shop.py``, ``shop.py:TABLE``, or ``package.module:TABLE``."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torchrec_mtl.data.table import Table
from torchrec_mtl.errors import InputError, not_one_of
from torchrec_mtl.jobs.command_line import faults_with_line, named


def find_table(text: str) -> Table:
    """Returns the declared table that a command line names.

    Raises:
        InputError: if there is no such file, it raises, or it does not say which table is meant.
    """
    found: Table = load_table(text) if is_declaration(text) else named("table", text, {}, Table)
    return found


def is_declaration(text: str) -> bool:
    """Returns whether a command line's ``text`` has the form of a file with a declaration.

    Example::

        >>> is_declaration("shop.py"), is_declaration("shop.py:TABLE"), is_declaration("my_package.data:SHOP")
        (True, True, False)
    """
    return text.partition(":")[0].endswith(".py")


def load_table(text: str) -> Table:
    """Runs a Python file and returns the table in it: the only one, or the one that ``FILE.py:NAME`` names.

    As of any program, imports are found in the file's folder; relative paths in it are relative to the present one.

    Raises:
        InputError: if there is no such file, it raises, with the line at which it does, or it has no such table.

    Example::

        >>> load_table("shoop.py")
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: shoop.py: no such file
    """
    path, _, name = text.partition(":")
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{path}: no such file")
    names: dict[str, object] = {"__name__": file.stem, "__file__": path}
    with faults_with_line((path,), path), _imports_from(file.parent):
        exec(compile(file.read_bytes(), path, "exec"), names)
    tables = {key: value for key, value in names.items() if isinstance(value, Table)}
    if name:
        if name not in tables:
            raise InputError(f"{path}: {not_one_of('table', name, tables)}")
        return tables[name]
    if len({id(table) for table in tables.values()}) != 1:
        several = f"{list(tables)}: name one of them, as {path}:{next(iter(tables), 'TABLE')}"
        raise InputError(f"{path}: must have one `Table`, not {several if tables else 'none'}")
    return next(iter(tables.values()))


@contextmanager
def _imports_from(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder.resolve()))
    try:
        yield
    finally:
        sys.path.remove(str(folder.resolve()))
