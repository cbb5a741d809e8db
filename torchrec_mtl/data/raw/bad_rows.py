"""Handles rows that break the format: refuses the file, or puts the row aside and counts it."""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import IO

from torchrec_mtl.data.raw.files import RawFile
from torchrec_mtl.data.raw.lines import BadLine
from torchrec_mtl.errors import InputError, check_at_least, check_choice, redacts

POLICIES = ("strict", "quarantine")
BAD_ROWS_FILE = "bad_rows.tsv"


def check_policy(policy: str, limit: int) -> None:
    """Raises `InputError` if ``policy`` is unknown or ``limit`` below 1."""
    check_choice("bad_rows", policy, POLICIES)
    check_at_least(1, bad_rows_limit=limit)


class BadRows:
    """Applies a policy to bad rows, and counts them.

    Args:
        policy: what happens to a bad row: "strict" raises at the first one, "quarantine" writes each to
            ``bad_rows.tsv`` as file, line, reason and unchanged row, separated by tabs; without the row and what the
            reason quotes of it within `torchrec_mtl.errors.redacted`.
        limit: largest number of bad rows in all files together; one more is an error.
        folder: folder of ``bad_rows.tsv``, which is created at the first bad row.

    Attributes:
        counts: number of bad rows of each file, by its name.

    Raises:
        InputError: if ``policy`` is unknown or ``limit`` below 1.

    Example::

        >>> with BadRows("strict", 100, Path("unused")) as bad_rows:
        ...     bad_rows.add(RawFile(Path("raw.csv")), 7, "1,2,x", "label (='x') must be 0 or 1")
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: raw.csv, line 7: label (='x') must be 0 or 1
    """

    def __init__(self, policy: str, limit: int, folder: Path) -> None:
        check_policy(policy, limit)
        self.policy, self.limit, self.counts = policy, limit, Counter[str]()
        self._path = folder / BAD_ROWS_FILE
        self._file: IO[bytes] | None = None

    def add(self, file: RawFile, line: int, row: str, reason: str) -> None:
        """Handles a bad row, given as latin-1 text: one character per byte.

        What ``reason`` quotes of the row must have gone through `torchrec_mtl.errors.shown`.

        Raises:
            InputError: under "strict", or if there are more than ``limit`` bad rows.
        """
        message = f"{file}, line {line}: {reason}"
        if self.policy == "strict":
            raise InputError(message)
        if self.total == self.limit:
            raise InputError(f"{message}; that is more bad rows than `bad_rows_limit` (={self.limit})")
        self.counts[file.name] += 1
        if self._file is None:
            self._file = self._path.open("wb")
        aside = b"" if redacts() else b"\t" + row.encode("latin-1")
        self._file.write(f"{file}\t{line}\t{reason}".encode() + aside + b"\n")

    def add_row(self, source: str, reason: str, row: Callable[[], str]) -> None:
        """Handles a bad row of ``source``; ``reason`` says which row it is, and ``row()`` gives it as text.

        Raises:
            InputError: as `add` does.
        """
        message = f"{source}: {reason}"
        if self.policy == "strict":
            raise InputError(message)
        if self.total == self.limit:
            raise InputError(f"{message}; that is more bad rows than `bad_rows_limit` (={self.limit})")
        self.counts[source] += 1
        if self._file is None:
            self._file = self._path.open("wb")
        self._file.write(f"{source}\t\t{reason}\t{row()}\n".encode())

    def add_lines(self, file: RawFile, lines: Iterable[BadLine]) -> None:
        """Handles bad lines of ``file``; raises as `add` does."""
        for line in lines:
            self.add(file, line.number, line.text, line.reason)

    @property
    def total(self) -> int:
        """Number of bad rows in all files."""
        return self.counts.total()

    def __enter__(self) -> "BadRows":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
