"""Writes files in every form that a download may have."""

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

FORMS = ("plain", "gz", "zst", "tar", "tar.gz", "tgz", "tar.zst")


def compress(content: bytes, ending: str) -> bytes:
    if ending.endswith("zst"):
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(content)
        return sink.getvalue().to_pybytes()
    return gzip.compress(content, mtime=0) if ending.endswith("gz") else content


def archive(contents: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, content in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            file.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def write(folder: Path, contents: Mapping[str, bytes], form: str, archive_name: str = "download") -> list[Path]:
    """Writes ``contents``, by name, in one form, and returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    if form in ("plain", "gz", "zst"):
        files = {name if form == "plain" else f"{name}.{form}": content for name, content in contents.items()}
    else:
        files = {f"{archive_name}.{form}": archive({f"inside/{name}": content for name, content in contents.items()})}
    for name, content in files.items():
        (folder / name).write_bytes(compress(content, name))
    return [folder / name for name in files]
