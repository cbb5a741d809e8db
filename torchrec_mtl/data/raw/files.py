"""Reads raw files as they were downloaded: plain, compressed with gzip or zstd, or as members of tar archives."""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from torchrec_mtl.errors import InputError

COMPRESSED = (".gz", ".zst")
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.zst")
DAMAGE = (EOFError, OSError, zlib.error, tarfile.TarError)


@dataclass(frozen=True)
class RawFile:
    """A file, or a member of a tar archive.

    Args:
        path: path of the file on disk.
        member: name of the member if ``path`` is a tar archive.

    Example::

        >>> print(RawFile(Path("raw/sample_train.tar.gz"), "common_features_train.csv"))
        raw/sample_train.tar.gz: common_features_train.csv
    """

    path: Path
    member: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.member is None else f"{self.path}: {self.member}"

    @property
    def name(self) -> str:
        """Name of the file or member, without folders."""
        return self.path.name if self.member is None else Path(self.member).name

    @contextmanager
    def open(self) -> Iterator["RawStream"]:
        """Opens the uncompressed content at its first byte."""
        with self.path.open("rb") as handle:
            whole = self._uncompressed(handle)
            content = whole if self.member is None else self._find_member(whole)
            yield RawStream(self, handle, content, whole)

    def members(self) -> Iterator[str]:
        """Yields the names of the files in the archive, in order, as they are reached."""
        with self.path.open("rb") as handle, self._reading():
            for entry in self._archive(self._uncompressed(handle)):
                if entry.isfile():
                    yield entry.name

    def _uncompressed(self, handle: IO[bytes]) -> Any:
        if self.path.name.endswith((".gz", ".tgz")):
            return gzip.GzipFile(fileobj=handle)
        if self.path.name.endswith(".zst"):
            import pyarrow as pa

            return pa.CompressedInputStream(pa.PythonFile(handle, mode="r"), "zstd")
        return handle

    def _find_member(self, whole: Any) -> Any:
        with self._reading():
            archive = self._archive(whole)
            for entry in archive:
                if entry.name == self.member:
                    return archive.extractfile(entry)
        raise InputError(f"{self.path}: member {self.member!r} is missing")

    def _archive(self, content: Any) -> tarfile.TarFile:
        return tarfile.open(fileobj=content, mode="r|")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turns the errors of a damaged file into `InputError`."""
        try:
            yield
        except DAMAGE as error:
            raise InputError(f"{self}: cannot be read to its end, so it is damaged or cut short ({error})") from error


class RawStream:
    """The uncompressed content of a `RawFile`, and how much of the file on disk has been read.

    At the end of a member, the rest of its archive is read too: the checksum of a compressed archive is at its end.
    """

    def __init__(self, file: RawFile, handle: IO[bytes], content: Any, whole: Any) -> None:
        self.file, self._handle, self._content, self._whole = file, handle, content, whole
        self._size = max(1, file.path.stat().st_size)

    def read(self, num_bytes: int) -> bytes:
        """Returns at most ``num_bytes``, none at the end. Raises `InputError` if the file is damaged or cut short."""
        with self.file._reading():
            piece = bytes(self._content.read(num_bytes))
            while not piece and self._whole.read(num_bytes):
                pass
            return piece

    @property
    def share_read(self) -> float:
        """Share of the file on disk that has been read."""
        return self._handle.tell() / self._size


def find_raw_file(folder: str | Path, name: str, archive_hint: str = "") -> RawFile:
    """Finds the file ``name`` in ``folder``: plain, as ``name.gz`` or ``name.zst``, or inside a tar archive there.

    Args:
        folder: folder of the download.
        name: name of the plain file.
        archive_hint: part of the name of the archives to search first. An archive is read until the member is found,
            which takes minutes for a large one without it.

    Raises:
        InputError: if the file does not exist, or exists in more than one form.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"`raw` (={str(folder)!r}) must be a folder")
    found = [path for path in (folder / f"{name}{ending}" for ending in ("", *COMPRESSED)) if path.is_file()]
    if len(found) > 1:
        raise InputError(f"{folder}: must have one form of {name}, not {[path.name for path in found]}")
    if found:
        return RawFile(found[0])
    archives = sorted(path for path in folder.iterdir() if path.name.endswith(ARCHIVES))
    for path in sorted(archives, key=lambda path: archive_hint not in path.name):
        for member in RawFile(path).members():
            if Path(member).name == name:
                return RawFile(path, member)
    searched = f", nor is it in {[path.name for path in archives]}" if archives else ""
    raise InputError(f"{folder / name}: no such file, plain, .gz or .zst{searched}")
