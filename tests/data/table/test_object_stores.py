"""Tables from an S3 server over HTTP: the same as from a disk; what cannot be reached is one sentence."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.data.table import shops
from tests.s3 import BUCKET, BrokenConnection, S3Server
from torchrec_mtl.data.schema import SPLITS, Schema
from torchrec_mtl.data.table import prepare_table
from torchrec_mtl.data.table.sources import find_files, read_parts
from torchrec_mtl.errors import InputError

NAME = f"s3://{BUCKET}"


@pytest.fixture(scope="module")
def raw(server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows in every format, on the disk and in the bucket."""
    folder = tmp_path_factory.mktemp("raw")
    rows = [shops.as_text(row) for row in shops.draw(np.random.default_rng(0), 400, integer_keys=False, missing=0.1)]
    for format in shops.FORMATS:
        shop = shops.write(folder / format, rows, format, num_parts=2)
        (shop.path / "._SUCCESS.crc").unlink(missing_ok=True)
        server.upload(shop.path, format)
    return folder


@pytest.mark.parametrize("format", shops.FORMATS)
def test_a_bucket_gives_what_a_folder_gives(server: S3Server, raw: Path, tmp_path: Path, format: str) -> None:
    here = prepare_table(shops.table(raw / format, format), tmp_path / "here")
    there = prepare_table(shops.table(server.uri(format), format), tmp_path / "there")
    assert Schema.load(here).vocabulary_digest == Schema.load(there).vocabulary_digest
    for split in SPLITS:
        assert pl.read_parquet(here / f"{split}.parquet").equals(pl.read_parquet(there / f"{split}.parquet"))


def test_globs_and_partitions_name_objects(server: S3Server, raw: Path, tmp_path: Path) -> None:
    (tmp_path / "dt=2026-11-01").mkdir()
    (tmp_path / "dt=2026-11-01/a.csv").write_text("x\n007\n")
    (tmp_path / "_SUCCESS").touch()
    server.upload(tmp_path, "days")
    for source in ("days", "days/dt=*", "days/*/*.csv"):
        (file,) = find_files(server.uri(source))
        assert file.name == f"{NAME}/days/dt=2026-11-01/a.csv"
        (part,) = read_parts(file, ["x", "dt"])
        assert part.batch.to_pylist() == [{"x": "007", "dt": "2026-11-01"}]


def test_a_wrong_key_or_a_missing_bucket(server: S3Server, raw: Path) -> None:
    (file, _) = find_files(server.uri("parquet"))
    with server.checking_keys():
        with pytest.raises(InputError, match=rf"^{NAME}/csv: cannot be read \(.*ACCESS_DENIED.*\)$"):
            find_files(server.uri("csv"))
        with pytest.raises(
            InputError, match=rf"^{NAME}/parquet/part-00000.parquet: cannot be read \(.*ACCESS_DENIED.*\)$"
        ):
            list(read_parts(file, ["user"]))
    with pytest.raises(InputError, match=r"^s3://nowhere/csv: (no such file or folder|cannot be read .*)$"):
        find_files(server.uri("csv").replace(NAME, "s3://nowhere"))
    with pytest.raises(InputError, match=rf"^{NAME}/nothing: no such file or folder$"):
        find_files(server.uri("nothing"))


@pytest.mark.parametrize("silent", [False, True], ids=["cut", "hangs"])
@pytest.mark.parametrize("format", shops.FORMATS)
def test_a_connection_that_breaks_in_the_middle_of_a_read(
    server: S3Server, raw: Path, tmp_path: Path, format: str, silent: bool
) -> None:
    connection = BrokenConnection(server, silent)
    table = shops.table(connection.uri(format), format)

    def break_off(stage: str, *_: object) -> None:
        if stage == "histories":
            connection.break_off()

    with pytest.raises(InputError, match=rf"^{NAME}/{format}/part-0000\d.{format}: cannot be read \(.+\)$") as error:
        prepare_table(table, tmp_path / "out", progress=break_off)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == [tmp_path / ".out.lock"]
    with pytest.raises(InputError, match=rf"^{NAME}/{format}: cannot be read \(.+\)$"):
        find_files(connection.uri(format))
    connection.close()


def test_an_object_that_is_replaced_between_the_passes(server: S3Server, raw: Path, tmp_path: Path) -> None:
    server.upload(raw / "parquet", "replaced")

    def replace(stage: str, *_: object) -> None:
        if stage == "histories":
            content = (raw / "parquet/part-00000.parquet").read_bytes()
            with server.filesystem.open_output_stream(f"{BUCKET}/replaced/part-00001.parquet") as stream:
                stream.write(content)

    with pytest.raises(InputError, match=rf"^{NAME}/replaced/part-00001.parquet: was changed while it was read"):
        prepare_table(shops.table(server.uri("replaced")), tmp_path / "out", progress=replace)
