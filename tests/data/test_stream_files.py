"""Streams from an S3 server over HTTP, folders of parts, and places that cannot be reached: a sentence each."""

import os
import re
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.test_stream_loader import ids, numbered
from tests.s3 import BUCKET, OPTIONS, BrokenConnection, S3Server
from torchrec_mtl.data import StreamLoader, load_schema, stream_split
from torchrec_mtl.errors import InputError, TrainingError

NAME = f"s3://{BUCKET}"


@pytest.fixture(scope="module")
def parts(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A split in two parts of row groups that need some 100 KB each."""
    folder = tmp_path_factory.mktemp("parts")
    numbered(folder, [[30_000] * 4, [30_000] * 2])
    server.upload(folder, "shop")
    return folder


def test_a_bucket_has_the_same_rows_as_a_folder(server: S3Server, parts: Path) -> None:
    streams = [stream_split(place, "train") for place in (str(parts), server.uri("shop"))]
    assert load_schema(server.uri("shop")) == load_schema(parts)
    assert streams[0].fingerprint == streams[1].fingerprint
    assert streams[0].base_rates().equal(streams[1].base_rates())
    here, there = ([ids(batch) for batch in StreamLoader(split, 4096, shuffle=True, seed=1)] for split in streams)
    assert here == there


def test_the_endpoint_may_be_in_the_environment(server: S3Server, parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    assert len(stream_split(f"{NAME}/shop/?{OPTIONS}", "train")) == 180_000


@pytest.mark.parametrize("silent", [False, True], ids=["cut", "hangs"])
def test_a_connection_that_breaks_in_the_middle_of_a_read(server: S3Server, parts: Path, silent: bool) -> None:
    connection = BrokenConnection(server, silent)
    split = stream_split(connection.uri("shop"), "train")
    batches = iter(StreamLoader(split, 4096, shuffle_window=30_000))
    next(batches)
    connection.break_off()
    file = rf"{NAME}/shop/train\.parquet/part-0000\d\.parquet"
    with pytest.raises(TrainingError, match=rf"^{file}: cannot be read \(.+\)$"):
        list(batches)
    connection.close()


@pytest.mark.parametrize("silent", [False, True], ids=["cut", "hangs"])
def test_a_server_that_does_not_answer(server: S3Server, parts: Path, silent: bool) -> None:
    connection = BrokenConnection(server, silent)
    schema = load_schema(connection.uri("shop"))
    connection.break_off()
    with pytest.raises(InputError, match=rf"^{NAME}/shop/schema\.json: cannot be read .*\(.+\)$"):
        load_schema(connection.uri("shop"))
    with pytest.raises(InputError, match=rf"^{NAME}/shop/train\.parquet.*: cannot be read \(.+\)$"):
        stream_split(connection.uri("shop"), "train", schema)
    connection.close()
    with pytest.raises(InputError, match=rf"^{NAME}/shop/schema\.json: cannot be read \(.+\)$"):
        load_schema(server.uri("shop", 9))  # nobody listens there


def test_a_wrong_key(server: S3Server, parts: Path) -> None:
    schema = load_schema(parts)
    with server.checking_keys():
        with pytest.raises(InputError, match=rf"^{NAME}/shop/schema\.json: cannot be read \(.*ACCESS_DENIED.*\)$"):
            load_schema(server.uri("shop"))
        with pytest.raises(InputError, match=rf"^{NAME}/shop/train\.parquet: cannot be read \(.*ACCESS_DENIED.*\)$"):
            stream_split(server.uri("shop"), "train", schema)


def test_a_missing_bucket_folder_or_split(server: S3Server, parts: Path) -> None:
    with pytest.raises(InputError, match=r"^s3://nowhere/shop: cannot be read \(.*NO_SUCH_BUCKET.*\)$"):
        load_schema(server.uri("shop").replace(NAME, "s3://nowhere"))
    sentence = f"{NAME}/nothing/schema.json: no such file, so '{NAME}/nothing' is not a prepared data set"
    with pytest.raises(InputError, match="^" + re.escape(sentence) + "$"):
        load_schema(server.uri("nothing"))
    with pytest.raises(InputError, match=rf"^{NAME}/shop/valid\.parquet: no such file$"):
        stream_split(server.uri("shop"), "valid")


@pytest.mark.parametrize(
    ("uri", "sentence"),
    [
        ("s3://b/f?secret_key=x", "s3://b/f: option 'secret_key' must be one of ['endpoint_override'"),
        ("s3://k:a=x@b/f", "a URI s3:// must not hold a key"),
        ("s3://b/f?request_timeout=0", "s3://b/f: option 'request_timeout' (=0) must be a number of at least 1"),
        ("s3://b/f?max_attempts=many", "s3://b/f: option 'max_attempts' (=many) must be a number of at least 1"),
        ("s4://b/f?secret=x", "s4://b/f: cannot be opened (Unrecognized filesystem type in URI"),
        ("file:///nowhere", "/schema.json: no such file, so 'file:///nowhere' is not a prepared data set"),
    ],
)
def test_a_wrong_uri_is_one_sentence_without_its_secrets(uri: str, sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)) as error:
        load_schema(uri)
    assert "\n" not in str(error.value)
    assert "=x" not in str(error.value)


def test_a_schema_at_a_uri_is_checked(tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text("{}")
    with pytest.raises(InputError, match=rf"^file://{tmp_path}/schema\.json: key 'version' is missing$"):
        load_schema(f"file://{tmp_path}")
    (tmp_path / "schema.json").write_bytes(b"\xff")
    with pytest.raises(InputError, match=rf"^file://{tmp_path}/schema\.json: cannot be read as JSON"):
        load_schema(f"file://{tmp_path}")


def test_a_folder_of_parts_as_spark_writes_it(tmp_path: Path) -> None:
    expected = list(range(12))
    split = numbered(tmp_path, [[3, 5], [4]])
    folder = tmp_path / "train.parquet"
    for name in ("_SUCCESS", "._SUCCESS.crc", ".part-00000.parquet.crc"):
        (folder / name).write_bytes(b"")
    empty = pl.read_parquet(folder / "part-00000.parquet").clear()
    empty.write_parquet(folder / "part-00002.parquet")
    for _ in range(2):
        split = stream_split(tmp_path, "train")
        assert [row for batch in StreamLoader(split, 5) for row in ids(batch)] == expected
        if folder.name == "train.parquet":
            folder = folder.rename(tmp_path / "train")
    (tmp_path / "train.parquet").mkdir()
    with pytest.raises(InputError, match=r"train\.parquet: must not be there together with 'train'$"):
        stream_split(tmp_path, "train")
    os.rmdir(tmp_path / "train.parquet")
    (folder / "rows.csv").write_bytes(b"")
    with pytest.raises(InputError, match=r"train: must hold parquet files only, not 'rows\.csv'$"):
        stream_split(tmp_path, "train")
    (folder / "rows.csv").unlink()
    (folder / "part-00001.parquet").write_bytes(b"")
    with pytest.raises(InputError, match=r"train/part-00001\.parquet: must be a whole parquet file"):
        stream_split(tmp_path, "train")
    pq.write_table(pa.table({"row": [1]}), folder / "part-00001.parquet")
    with pytest.raises(InputError, match=r"train/part-00001\.parquet: column 'click' is missing$"):
        stream_split(tmp_path, "train")
    for file in folder.glob("part-*"):
        file.unlink()
    with pytest.raises(InputError, match=r"train: must hold parquet files$"):
        stream_split(tmp_path, "train")
