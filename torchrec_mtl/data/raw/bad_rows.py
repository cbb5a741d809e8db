"""What to do with a row that breaks the format: refuse the file, or put the row aside and count it."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO

from torchrec_mtl.data.raw.files import RawFile
from torchrec_mtl.data.raw.lines import BadLine
from torchrec_mtl.errors import InputError

POLICIES = ("strict", "quarantine")
FILE_NAME = "bad_rows.tsv"


def check_policy(policy: str, limit: int) -> None:
    """InputError if ``policy`` is unknown or ``limit`` below 1."""
    if policy not in POLICIES:
        raise InputError(f"`bad_rows` (={policy!r}) must be one of {list(POLICIES)}")
    if limit < 1:
        raise InputError(f"`bad_rows_limit` (={limit}) must be at least 1")


class BadRows:
    """The policy, and what came of it.

    Args:
        policy: "strict" raises at the first bad row; "quarantine" writes it to ``bad_rows.tsv``: file, line,
            reason and the row as it was, a tab between them.
        limit: of bad rows in all files together; one more is an error.
        folder: where ``bad_rows.tsv`` goes; it is made with the first bad row.

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
        self._path = folder / FILE_NAME
        self._file: IO[bytes] | None = None

    def add(self, file: RawFile, line: int, row: str, reason: str) -> None:
        """A bad row; ``row`` is latin-1, one character a byte.

        Raises:
            InputError: under "strict", or if there are more than ``limit``.
        """
        told = f"{file}, line {line}: {reason}"
        if self.policy == "strict":
            raise InputError(told)
        if self.total == self.limit:
            raise InputError(f"{told}; that is more bad rows than `bad_rows_limit` (={self.limit})")
        self.counts[file.name] += 1
        if self._file is None:
            self._file = self._path.open("wb")
        self._file.write(f"{file}\t{line}\t{reason}\t".encode() + row.encode("latin-1") + b"\n")

    def add_lines(self, file: RawFile, lines: Iterable[BadLine]) -> None:
        """Bad lines of ``file``; raises as `add` does."""
        for line in lines:
            self.add(file, line.number, line.text, line.reason)

    @property
    def total(self) -> int:
        return self.counts.total()

    def __enter__(self) -> "BadRows":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
