"""Where a prepared data set lies: a folder of a disk or of an object store."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa
from pyarrow import fs

from torchrec_mtl.argument_types import checked
from torchrec_mtl.data.schema import SCHEMA_FILE, Schema
from torchrec_mtl.errors import InputError, not_one_of
from torchrec_mtl.files import parse_json

S3_NUMBERS = {"connect_timeout": 5.0, "request_timeout": 10.0, "max_attempts": 3.0}
S3_OPTIONS = ("endpoint_override", "region", "scheme", "anonymous", *S3_NUMBERS)


def is_uri(directory: str | Path) -> bool:
    """Whether ``directory`` is a URI rather than a path.

    Example::

        >>> is_uri("s3://bucket/shop"), is_uri("data/shop")
        (True, False)
    """
    return "://" in str(directory)


@dataclass(frozen=True)
class Location:
    """A folder of a file system.

    Args:
        name: the folder in messages: a path, or a URI without its options.
        filesystem: Arrow's file system.
        path: the folder's path there.
        is_remote: whether it is reached over a network.
    """

    name: str
    filesystem: fs.FileSystem
    path: str
    is_remote: bool

    def read(self, file: str) -> bytes:
        """Returns the content of a file of the folder."""
        path = f"{self.path}/{file}"
        with self.reaching(file), suppress(FileNotFoundError), self.filesystem.open_input_stream(path) as stream:
            return bytes(stream.read())
        with self.reaching("."), suppress(FileNotFoundError):
            self.filesystem.get_file_info(fs.FileSelector(self.path))  # says if there is no such bucket
        raise InputError(f"{self.name}/{file}: no such file, so {self.name!r} is not a prepared data set")

    def files(self) -> list[str]:
        """Returns the names of the files in the folder itself."""
        with self.reaching("."):
            found = self.filesystem.get_file_info(fs.FileSelector(self.path))
        return sorted(each.base_name for each in found if each.type == fs.FileType.File)

    def parts(self, split: str) -> list[str]:
        """Returns the parquet files of a split in order, relative to the folder.

        The split is ``<split>.parquet``, a file or a folder of parts, or the folder of parts ``<split>``. In a folder,
        names that begin with ``_`` or ``.`` are passed over, as Spark and Hive do.

        Raises:
            InputError: if there is none, or more than one of these, or something else in a folder of parts.
        """
        names = [f"{split}.parquet", split]
        with self.reaching(names[0]):
            found = self.filesystem.get_file_info([f"{self.path}/{name}" for name in names])
        present = [(name, info) for name, info in zip(names, found, strict=True) if info.type != fs.FileType.NotFound]
        if len(present) != 1:
            what = "no such file" if not present else f"must not be there together with {split!r}"
            raise InputError(f"{self.name}/{names[0]}: {what}")
        name, info = present[0]
        if info.type == fs.FileType.File:
            return [name]
        parts = []
        with self.reaching(name):
            listed = self.filesystem.get_file_info(fs.FileSelector(f"{self.path}/{name}"))
        for each in listed:
            if each.base_name[0] in "_.":
                continue
            if each.type != fs.FileType.File or not each.base_name.endswith(".parquet"):
                raise InputError(f"{self.name}/{name}: must hold parquet files only, not {each.base_name!r}")
            parts.append(f"{name}/{each.base_name}")
        if not parts:
            raise InputError(f"{self.name}/{name}: must hold parquet files")
        return sorted(parts)

    @contextmanager
    def reaching(self, file: str, error_type: type[Exception] = InputError) -> Iterator[None]:
        """Turns the errors of a file system that cannot be reached into one sentence of ``error_type``."""
        try:
            yield
        except (OSError, pa.ArrowException, InputError) as error:
            # a parquet file that cannot be read looks damaged, but over a network it need not be
            cause = error.__cause__ if self.is_remote and isinstance(error, InputError) else error
            if isinstance(cause, (InputError, type(None))):
                raise
            name = self.name if file == "." else f"{self.name}/{file}"
            raise error_type(f"{name}: cannot be read ({str(cause).splitlines()[0]})") from cause


def locate(directory: str | Path) -> Location:
    """Returns the place of a prepared data set.

    Args:
        directory: path, or URI ``s3://``, ``gs://``, ``hdfs://``, ``abfs://``, ``file://``. Credentials come from the
            environment or the files of the provider's own tools, never from the URI. That of S3 may have options:
            ``?endpoint_override=host:port`` (or ``AWS_ENDPOINT_URL``), ``region`` (the bucket's), ``scheme``,
            ``anonymous=true``, ``connect_timeout`` (seconds, 5), ``request_timeout`` (seconds without a byte, 10) and
            ``max_attempts`` (3). A server that hangs is given up within ``2 * max_attempts * request_timeout`` seconds.
            Other URIs have the options of `pyarrow.fs.FileSystem.from_uri`.

    Raises:
        InputError: if the URI is wrong, or there is no such file system.

    Example::

        >>> locate("data/shop").name
        'data/shop'
        >>> locate("s3://bucket/shop?endpoint_override=localhost:9000&scheme=http&region=us-east-1").path
        'bucket/shop'
        >>> locate("s3://bucket/shop?regin=us-east-1")
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: s3://bucket/shop: option 'regin' must be one of ['endpoint_override', \
'region', 'scheme', 'anonymous', 'connect_timeout', 'request_timeout', 'max_attempts']; the nearest is 'region'
    """
    text = str(directory)
    if not is_uri(text):
        return Location(text, fs.LocalFileSystem(), text, is_remote=False)
    name = text.split("?")[0].rstrip("/")
    try:
        if text.startswith("s3://"):
            return Location(name, _s3(name, text), name.removeprefix("s3://"), is_remote=True)
        filesystem, path = fs.FileSystem.from_uri(text)
    except InputError:
        raise
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0].replace(text, name)  # options may be secrets
        raise InputError(f"{name}: cannot be opened ({reason})") from None
    return Location(name, filesystem, path.rstrip("/"), not isinstance(filesystem, fs.LocalFileSystem))


def _s3(name: str, uri: str) -> fs.S3FileSystem:
    if "@" in urlsplit(uri).netloc:
        raise InputError("a URI s3:// must not hold a key: the environment or AWS's own files have it")
    given = dict(parse_qsl(urlsplit(uri).query))
    for option in given:
        if option not in S3_OPTIONS:
            raise InputError(f"{name}: {not_one_of('option', option, S3_OPTIONS)}")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    numbers = {option: _number(name, option, given.pop(option, default)) for option, default in S3_NUMBERS.items()}
    if not (endpoint or given.get("endpoint_override") or given.get("region")):
        given["region"] = fs.resolve_s3_region(name.removeprefix("s3://").split("/")[0])
    options: dict[str, Any] = {"endpoint_override": endpoint, **given, "anonymous": given.get("anonymous") == "true"}
    attempts = fs.AwsStandardS3RetryStrategy(max_attempts=int(numbers.pop("max_attempts")))
    return fs.S3FileSystem(**options, **numbers, retry_strategy=attempts)


def _number(name: str, option: str, value: str | float) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 1 <= number < 1e6:
        raise InputError(f"{name}: option {option!r} (={value}) must be a number of at least 1")
    return number


@checked
def load_schema(directory: str | Path) -> Schema:
    """Reads the schema of a prepared data set, in a folder or at a URI, see `locate`.

    Raises:
        InputError: if the file is missing or wrong, or cannot be reached.
    """
    if not is_uri(directory):
        return Schema.load(directory)
    location = locate(directory)
    file = f"{location.name}/{SCHEMA_FILE}"
    return Schema.from_json(parse_json(location.read(SCHEMA_FILE), file), file)
