"""Which files a source names, in which formats, and that their rows are read as they are."""

import gzip
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.data.table import shops
from torchrec_mtl.data.table import formats
from torchrec_mtl.data.table.columns import read_values
from torchrec_mtl.data.table.parts import WrongLine
from torchrec_mtl.data.table.sources import find_files, read_parts
from torchrec_mtl.errors import InputError

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


def lay(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x,y\n1,2\n" if not name.endswith(("_SUCCESS", ".crc")) else "")


SPARK = ("raw/_SUCCESS", "raw/part-1.csv", "raw/part-0.csv", "raw/.part-0.csv.crc", "raw/_temporary/0/part-7.csv")
DAYS = ("raw/_SUCCESS", "raw/dt=2026-11-01/a.csv", "raw/dt=2026-11-02/hour=3/b.csv", "raw/dt=2026-11-02/.b.csv.crc")
FOUND = {
    "a file": (SPARK, "raw/part-1.csv", ["raw/part-1.csv"]),
    "a folder of Spark's": (SPARK, "raw", ["raw/part-0.csv", "raw/part-1.csv"]),
    "a folder with a slash": (SPARK, "raw/", ["raw/part-0.csv", "raw/part-1.csv"]),
    "a glob of everything": (SPARK, "raw/*", ["raw/part-0.csv", "raw/part-1.csv"]),
    "a glob of names": (SPARK, "raw/part-[1-9].csv", ["raw/part-1.csv"]),
    "a glob of a hidden name": (SPARK, "raw/_temp*/0/part-?.csv", ["raw/_temporary/0/part-7.csv"]),
    "a hidden file by its name": (("raw/_x.csv",), "raw/_x.csv", ["raw/_x.csv"]),
    "hive partitions": (DAYS, "raw", ["raw/dt=2026-11-01/a.csv", "raw/dt=2026-11-02/hour=3/b.csv"]),
    "a glob of partitions": (DAYS, "raw/dt=*-02", ["raw/dt=2026-11-02/hour=3/b.csv"]),
    "a glob from the root": (SPARK, "r*/part-0.csv", ["raw/part-0.csv"]),
    "several": (SPARK, ["raw/part-1.csv", "raw/part-0.csv"], ["raw/part-1.csv", "raw/part-0.csv"]),
}


@pytest.mark.parametrize("case", FOUND)
@pytest.mark.parametrize("absolute", [True, False])
def test_a_source_names_its_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: str, absolute: bool) -> None:
    names, source, expected = FOUND[case]
    lay(tmp_path, *names)
    monkeypatch.chdir(tmp_path)
    start = f"{tmp_path}/" if absolute else ""
    source = [start + each for each in source] if isinstance(source, list) else start + source
    assert [str(Path(file.path)) for file in find_files(source)] == [start + name for name in expected]


def test_a_uri_names_its_files_too(tmp_path: Path) -> None:
    lay(tmp_path, *SPARK)
    files = find_files(f"file://{tmp_path}/raw/*.csv")
    assert [file.name for file in files] == [f"file://{tmp_path}/raw/part-{number}.csv" for number in (0, 1)]


def test_folders_named_column_value_are_columns(tmp_path: Path) -> None:
    for partition in ("dt=2026-11-01/city=Sankt%20Gallen", f"dt=2026-11-02/city={HIVE_NULL}"):
        lay(tmp_path, f"raw/{partition}/part.csv")
    parts = [part for file in find_files(f"{tmp_path}/raw") for part in read_parts(file, ["dt", "x", "city"])]
    rows = [row for part in parts for row in part.batch.to_pylist()]
    assert rows == [
        {"dt": "2026-11-01", "city": "Sankt Gallen", "x": "1"},
        {"dt": "2026-11-02", "city": None, "x": "1"},
    ]


REFUSED = {
    "nothing there": ((), "raw", "raw: no such file or folder"),
    "nothing matches": (SPARK, "raw/*.parquet", r"raw/\*.parquet: there is no file of rows"),
    "only hidden files": (("raw/_SUCCESS",), "raw", "raw: there is no file of rows"),
    "an unknown ending": (("raw/a.xlsx",), "raw", r"raw/a.xlsx: its name must end with one of \['.parquet', "),
    "no such scheme": ((), "ftp://host/x", "ftp://host/x: cannot be "),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_source_without_files_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, case: str) -> None:
    names, source, message = REFUSED[case]
    lay(tmp_path, *names)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        find_files(source)


@pytest.mark.parametrize("format", shops.FORMATS)
def test_a_part_without_a_byte_is_refused(tmp_path: Path, format: str) -> None:
    shop = shops.write(tmp_path / "raw", shops.draw(np.random.default_rng(0), 5, False, 0), format)
    (shop.path / f"part-9.{format}").touch()
    with pytest.raises(InputError, match=rf"part-9.{format}: is empty \(0 bytes\)"):
        find_files(str(shop.path))


@pytest.mark.parametrize("format", shops.FORMATS)
def test_a_cut_file_is_refused_with_its_name(tmp_path: Path, format: str) -> None:
    shop = shops.write(tmp_path / "raw", shops.draw(np.random.default_rng(0), 300, False, 0), format)
    (file,) = shop.path.glob("part*")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    (found,) = find_files(str(shop.path))
    with pytest.raises(InputError, match=rf"part-00000.{format}: ") as error:
        list(read_parts(found, ["user", "price", "note"]))
    assert "\n" not in str(error.value)


def test_a_flipped_bit_of_parquet_is_found(tmp_path: Path) -> None:
    rows = pa.table({"x": np.random.default_rng(0).integers(10**9, size=1000)})
    pq.write_table(rows, tmp_path / "x.parquet", write_page_checksum=True)
    content = bytearray((tmp_path / "x.parquet").read_bytes())
    content[1000] ^= 1
    (tmp_path / "x.parquet").write_bytes(content)
    (found,) = find_files(str(tmp_path))
    with pytest.raises(InputError, match=r"x.parquet: cannot be read"):
        list(read_parts(found, []))


def duplicate(file: Path, format: str) -> None:
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["x", "x"])
    if format in ("csv", "tsv"):
        file.write_text("x,x\n1,2\n".replace(",", "," if format == "csv" else "\t"))
    elif format == "parquet":
        pq.write_table(table, file)
    else:
        pa.feather.write_feather(table, file, version=2)


@pytest.mark.parametrize("format", ["parquet", "csv", "tsv"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, format: str) -> None:
    duplicate(tmp_path / f"a.{format}", format)
    (found,) = find_files(str(tmp_path))
    with pytest.raises(InputError, match=rf"a.{format}: column 'x' is there 2 times; the columns are \['x', 'x'\]"):
        list(read_parts(found, ["x"]))


@pytest.mark.parametrize("format", shops.FORMATS)
def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path, format: str) -> None:
    shop = shops.write(tmp_path / "raw", shops.draw(np.random.default_rng(0), 5, False, 0), format)
    (found,) = find_files(str(shop.path))
    with pytest.raises(
        InputError, match=rf"00.{format}: column 'colour' is missing; the columns are \['user', 'item', "
    ):
        list(read_parts(found, ["user", "colour"]))


@pytest.mark.parametrize("format", shops.FORMATS)
def test_a_column_both_in_the_file_and_in_its_folders_name_is_refused(tmp_path: Path, format: str) -> None:
    rows = shops.draw(np.random.default_rng(0), 5, False, 0)
    shops.write(tmp_path / "city=Rome", rows, format)
    (found,) = find_files(str(tmp_path))
    with pytest.raises(InputError, match=rf"00.{format}: column 'city' must not be in the file, since its folder's"):
        list(read_parts(found, ["user", "city"]))


@pytest.mark.parametrize("format", shops.FORMATS)
def test_rows_are_numbered_across_parts_and_in_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, format: str
) -> None:
    monkeypatch.setattr("torchrec_mtl.data.table.sources.PART_ROWS", 4)
    monkeypatch.setattr(formats, "_BLOCK", 300)
    shop = shops.write(tmp_path / "raw", shops.draw(np.random.default_rng(0), 30, False, 0.1), format)
    (found,) = find_files(str(shop.path))
    parts = list(read_parts(found, ["note", "price"]))
    assert len(parts) > 4
    firsts = np.cumsum([0, *(part.batch.num_rows for part in parts)])
    assert [part.first_row for part in parts] == firsts[:-1].tolist()
    notes = [note for part in parts for note in part.batch.column("note").to_pylist()]
    assert notes == [f"row {number}" for number in range(30)]
    prices = [price for part in parts for price in read_values(part, "price", "number").flat.to_pylist()]
    assert prices == [row["price"] for row in shop.rows]


CHANGES: dict[str, Callable[[Path], object]] = {
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"9,9\n"),
    "of another time": lambda file: os.utime(file, ns=(1, 1)),
    "gone": Path.unlink,
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("when", ["before", "while"])
def test_a_file_that_changes_is_refused(tmp_path: Path, change: str, when: str) -> None:
    lay(tmp_path, "raw/a.csv")
    (found,) = find_files(f"{tmp_path}/raw")
    parts = read_parts(found, ["x"])
    if when == "while":
        next(parts)
    CHANGES[change](tmp_path / "raw/a.csv")
    with pytest.raises(InputError, match=r"a.csv: was changed while it was read"):
        list(parts)


def texts(tmp_path: Path, content: str | bytes, name: str = "a.csv", column: str = "x") -> list[str | None]:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (found,) = find_files(str(tmp_path / name))
    return [value for part in read_parts(found, [column]) for value in part.batch.column(column).to_pylist()]


def test_csv_values_stay_as_they_are_written(tmp_path: Path) -> None:
    assert texts(tmp_path, "x\n007\n1e3\ntrue\n2026-11-01\nNA\n\"\"\n' '\n") == [
        *("007", "1e3", "true", "2026-11-01", "NA", None, "' '")
    ]
    assert texts(tmp_path, b"\xef\xbb\xbfx,y\n007,1\n") == ["007"]  # a byte order mark
    assert texts(tmp_path, 'x,y\r\n"a ""b"", c",1\r\n') == ['a "b", c']
    assert texts(tmp_path, gzip.compress(b"x\n007\n"), "a.csv.gz") == ["007"]
    assert texts(tmp_path, "x\n") == []


def test_newlines_within_quotes_belong_to_the_value(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(formats, "_BLOCK", 64)
    values = [f"line {number}\nand more, {number}" for number in range(40)]
    assert texts(tmp_path, "y,x\n" + "".join(f'1,"{value}"\n' for value in values)) == values


def test_a_csv_row_of_another_length_is_refused(tmp_path: Path) -> None:
    rule = r"a.csv: row 1 \(counted from 0\): must have 2 values, as the header, not 3: '4,5,6'"
    with pytest.raises(InputError, match=rule):
        texts(tmp_path, "x,y\n1,2\n4,5,6\n")
    with pytest.raises(InputError, match=r"a.csv: cannot be read \(.*invalid UTF8"):
        texts(tmp_path, b"x,y\n\xff,2\n")


@pytest.mark.parametrize("block", [64, 2**24])
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_csv_rows_keep_their_numbers_among_those_of_another_length(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, block: int
) -> None:
    monkeypatch.setattr(formats, "_BLOCK", block)
    is_wrong = [number in (0, 1, 7, 20, 21, 22, 99) for number in range(100)]
    lines = [f"{n},1,2" if wrong else f'"{n}\n",{n}' if n % 3 else f"{n},{n}" for n, wrong in enumerate(is_wrong)]
    content = "\n".join(["x,y", *lines, ""]).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    found: list[WrongLine] = []
    numbers = []
    for part in read_parts(find_files(str(tmp_path / name))[0], [], found):
        numbers += [part.number(row) for row in range(part.batch.num_rows)]
        assert [int(value) for value in part.column("x").to_pylist()] == numbers[-part.batch.num_rows :]
        read_values(part, "x", "label")
        assert all(f"row {part.number(row)} (counted" in reason for row, reason in part.reasons.items())
    assert numbers == [number for number, wrong in enumerate(is_wrong) if not wrong]
    assert [(line.row, line.text) for line in found] == [(n, lines[n]) for n, wrong in enumerate(is_wrong) if wrong]


def test_json_lines_keep_their_types_in_every_block(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(formats, "_BLOCK", 20)
    lines = ['{"x": "2026-11-01"}', "", '{"y": 3}', '{"x": null, "y": 3.5}', '{"x": "007"}']
    assert texts(tmp_path, "\n".join(lines), "a.jsonl") == ["2026-11-01", None, None, "007"]
    assert texts(tmp_path, "\n".join(lines), "a.jsonl", "y") == [None, 3, 3.5, None]
    large = [9007199254740993, 2**63 - 1]
    assert texts(tmp_path, "".join(f'{{"x": {number}}}\n' for number in large), "a.jsonl") == large


JSON = {
    "no JSON": ('{"x": 1}\n\nhello\n', r"row 1 \(counted from 0\): 'hello' must be a JSON object"),
    "cut": ('{"x": 1}\n{"x": 2}\n{"x": ', r"row 2 \(counted from 0\): '{\"x\": ' must be a JSON object"),
    "an array": ('[{"x": 1}]\n', r"row 0 .*must be a JSON object"),
    "two kinds": ('{"x": 1}\n{"x": [1]}\n', "values of a column must be of one kind, from row 0 on"),
    "never there": ('{"y": 1}\n', r"column 'x' is missing; the columns are \['y'\]"),
}


@pytest.mark.parametrize("case", JSON)
def test_wrong_json_lines_are_refused(tmp_path: Path, case: str) -> None:
    content, message = JSON[case]
    with pytest.raises(InputError, match=rf"a.jsonl: {message}") as error:
        texts(tmp_path, content, "a.jsonl")
    assert "\n" not in str(error.value)


def test_a_column_with_a_dot_is_not_a_field_of_a_struct(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a.b": [1], "a": [{"b": 2, "c": 3}], "x": [4]}), tmp_path / "a.parquet")
    (found,) = find_files(str(tmp_path))
    (part,) = read_parts(found, ["a.b", "x"])
    assert part.batch.to_pylist() == [{"a.b": 1, "x": 4}]


def test_files_without_rows_are_passed_over(tmp_path: Path) -> None:
    rows = shops.draw(np.random.default_rng(0), 5, False, 0)
    shop = shops.write(tmp_path / "raw", rows, "parquet")
    shutil.copy(next(shop.path.glob("part*")), shop.path / "part-1.parquet")
    pq.write_table(pq.read_table(shop.path / "part-1.parquet").slice(0, 0), shop.path / "part-2.parquet")
    parts = [part for file in find_files(str(shop.path)) for part in read_parts(file, ["user"])]
    assert [part.batch.num_rows for part in parts] == [5, 5]
