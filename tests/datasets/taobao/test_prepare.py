import gzip
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.datasets.taobao import raw, reference
from tests.datasets.vocabularies import read_vocabularies
from tests.generators.taobao import TaobaoGenerator
from torchrec_mtl.data import BatchLoader, Schema, read_split
from torchrec_mtl.data.table import TableEncoder
from torchrec_mtl.datasets import prepare_taobao
from torchrec_mtl.errors import InputError

HISTORIES = ("history_cate", "history_brand")


def read_decoded(directory: Path) -> dict[str, list[dict[str, Any]]]:
    """Reads the rows of the splits, with raw values in place of codes, None for code 0."""
    vocabularies = read_vocabularies(directory)
    values = {(field, code): value for field, ids in vocabularies.items() for code, value in enumerate(ids, 1)}
    fields = Schema.load(directory).field_names
    splits = {}
    for split in ("train", "valid", "test"):
        rows = pl.read_parquet(directory / f"{split}.parquet").to_dicts()
        for row in rows:
            for field in fields:
                if field in HISTORIES:
                    row[field] = [values.get((field, code)) for code in row[field]]
                else:
                    row[field] = values.get((field, row[field]))
            if row["pid"] is not None:
                row["pid"] = "{}_{}".format(*divmod(row["pid"], 10**9))
        splits[split] = rows
    return splits


def compare(
    folder: Path, directory: Path, min_count: int = 1, history_length: int = 0, history_days: int = 7, days: int = 0
) -> dict[str, list[dict[str, Any]]]:
    """Prepares the files, compares every row with the reference, and returns the splits."""
    options = {"history_length": history_length, "history_days": history_days, "purchase_days": days}
    prepare_taobao(folder, directory, min_count=min_count, **options)
    fields = (*reference.SINGLE, *(HISTORIES if history_length else ()))
    expected = reference.drop_rare(reference.impressions(folder, *options.values()), fields, min_count)
    columns = ("time_stamp", "click", *(["purchase"] if days else []), *fields)
    splits = read_decoded(directory)

    def as_text(rows: list[dict[str, Any]]) -> list[str]:
        return sorted(json.dumps([row[column] for column in columns]) for row in rows)

    assert as_text(splits["train"] + splits["valid"]) == as_text([row for row in expected if row["day"] < 7])
    assert as_text(splits["test"]) == as_text([row for row in expected if row["day"] == 7])
    assert set(Schema.load(directory).field_names) == set(fields)
    return splits


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"min_count": 3},
        {"history_length": 5, "history_days": 2},
        {"history_length": 50, "history_days": 14, "days": 1, "min_count": 2},
        {"days": 3},
    ],
)
def test_preparing_generated_files_agrees_with_the_reference(tmp_path: Path, options: dict[str, int]) -> None:
    generator = TaobaoGenerator(1500, (0.3, 0.1), behaviors_per_row=6, first_id=2**31 - 20)
    splits = compare(generator.write(tmp_path / "raw"), tmp_path / "prepared", **options)
    assert 50 < len(splits["valid"]) < 200
    if options.get("days"):
        assert sum(row["purchase"] for row in splits["train"]) > 20
    assert max(row["user"] or 0 for row in splits["train"]) > 2**31


def test_new_rows_get_the_ids_of_the_prepared_ones(tmp_path: Path) -> None:
    folder = TaobaoGenerator(1500, (0.3, 0.1), behaviors_per_row=6).write(tmp_path / "raw")
    directory = prepare_taobao(folder, tmp_path / "out", history_length=5, min_count=2)
    rows = [row for row in reference.impressions(folder, 5, 7, 0) if row["day"] == 7]
    for row in rows:
        place, number = row["pid"].split("_")
        row |= {"user_id": row["user"], "pid": int(place) * 10**9 + int(number)}
    encoder = TableEncoder.load(directory)
    batch = pa.RecordBatch.from_pylist(rows)
    encoded = encoder.encode(batch).with_columns(pl.Series("time_stamp", batch["time_stamp"]))
    prepared = pl.read_parquet(directory / "test.parquet").select(encoded.columns)
    order = ("time_stamp", "user", "adgroup_id")
    assert encoded.sort(order).equals(prepared.sort(order))


seconds = st.one_of(st.integers(0, 5), st.sampled_from([raw.DAY - 1, raw.DAY, raw.DAY + 1, 8 * raw.DAY - 1]))
small = st.integers(1, 2)
behaviors = st.tuples(
    small, st.one_of(seconds, seconds.map(lambda s: -s)), st.sampled_from(["pv", "buy"]), small, small
)
clicks = st.tuples(small, seconds, small, st.integers(0, 1))


@settings(max_examples=20)
@given(
    st.lists(clicks, max_size=12), st.lists(behaviors, min_size=1, max_size=25), st.integers(0, 3), st.integers(0, 2)
)
def test_windows_and_ties(rows: list, log: list, history_length: int, days: int) -> None:
    lines = {
        "raw_sample": raw.LINES["raw_sample"]  # clicks stay in the minority
        + [f"9,{raw.DAY_1},1,{raw.PID},1,0"] * 20
        + [f"{user},{raw.DAY_1 + s},{ad},{raw.PID},{1 - click},{click}" for user, s, ad, click in rows],
        "ad_feature": ["1,1,1,1,1,1.0", "2,2,2,2,2,2.0", *raw.LINES["ad_feature"]],
        "behavior_log": [f"{user},{raw.DAY_1 + s},{tag},{cate},{brand}" for user, s, tag, cate, brand in log],
    }
    with tempfile.TemporaryDirectory() as folder:
        compare(raw.write(Path(folder) / "raw", **lines), Path(folder) / "out", 1, history_length, 1, days)


def test_prepared_files_are_read_as_batches(tmp_path: Path) -> None:
    directory = prepare_taobao(raw.write(tmp_path / "raw"), tmp_path / "out", history_length=2, history_days=8)
    split = read_split(directory, "test")
    batch = next(iter(BatchLoader(split, 100)))
    assert batch.labels.shape == (4, 1)
    assert batch.sparse_features["history_cate"].lengths().tolist() in ([2, 0, 0, 0], [0, 0, 0, 2])  # user 1 and 3
    assert split.schema.tasks.names == ("click",)
    assert sorted(split.groups.tolist()) == [1, 3, 3, 3]  # user 3 is not in train


def test_seven_days_of_train_and_the_eighth_of_test_in_beijing_time(tmp_path: Path) -> None:
    lines = [f"1,{raw.DAY_1 - 1 + day * raw.DAY},10,{raw.PID},1,0" for day in (1, 7, 8)]
    folder = raw.write(tmp_path / "raw", raw_sample=[f"1,{raw.DAY_1},10,{raw.PID},1,0"] * 40 + lines)
    prepare_taobao(folder, tmp_path / "out")
    times = {split: pl.read_parquet(tmp_path / "out" / f"{split}.parquet")["time_stamp"] for split in ("train", "test")}
    assert times["test"].to_list() == [raw.DAY_1 - 1 + 8 * raw.DAY]
    assert times["train"].max() < raw.DAY_1 + 7 * raw.DAY

    for days in (7, 9):
        changed = [f"1,{raw.DAY_1 + day * raw.DAY},10,{raw.PID},1,0" for day in range(days)]
        raw.write(tmp_path / "raw", raw_sample=changed)
        with pytest.raises(
            InputError, match=rf"raw_sample\.csv: time_stamp must span 8 days, Beijing time, not {days}"
        ):
            prepare_taobao(folder, tmp_path / f"out{days}")


@pytest.mark.parametrize(("ending", "compress"), [(".gz", gzip.compress), (".zst", None)])
def test_compressed_files_give_the_same_bytes(tmp_path: Path, ending: str, compress: Any) -> None:
    plain = raw.write(tmp_path / "plain")
    packed = tmp_path / "packed"
    packed.mkdir()
    for file in plain.iterdir():
        if compress is None:
            with pa.output_stream(str(packed / f"{file.name}{ending}"), compression="zstd") as stream:
                stream.write(file.read_bytes())
        else:
            (packed / f"{file.name}{ending}").write_bytes(compress(file.read_bytes()))
    one, other = (
        prepare_taobao(folder, tmp_path / f"{folder.name}-out", history_length=3) for folder in (plain, packed)
    )
    for split in ("train", "valid", "test"):
        assert (one / f"{split}.parquet").read_bytes() == (other / f"{split}.parquet").read_bytes()
    assert Schema.load(one).vocabulary_digest == Schema.load(other).vocabulary_digest


@pytest.mark.parametrize(
    ("name", "line", "reason"),
    [
        ("raw_sample", f"1,{raw.DAY_1},10,{raw.PID},1", "must have 6 values, not 5"),
        ("raw_sample", "", "must have 6 values, not 1"),
        ("raw_sample", f"1,{raw.DAY_1},10,{raw.PID},1,0,0", "must have 6 values, not 7"),
        (
            "raw_sample",
            f"1,{raw.DAY_1},10,{raw.PID},1,0\r",
            "must end in a line feed alone, not in a carriage return too",
        ),
        ("raw_sample", f"x,{raw.DAY_1},10,{raw.PID},1,0", "`user` (='x') must be an integer of at least 0"),
        ("raw_sample", f" 1,{raw.DAY_1},10,{raw.PID},1,0", "`user` (=' 1') must be an integer"),
        ("raw_sample", f",{raw.DAY_1},10,{raw.PID},1,0", "`user` (='') must be an integer"),
        ("raw_sample", f"{10**19},{raw.DAY_1},10,{raw.PID},1,0", f"`user` (='{10**19}') must be an integer"),
        ("raw_sample", f"1,2017-05-06,10,{raw.PID},1,0", "`time_stamp` (='2017-05-06') must be seconds since 1970"),
        ("raw_sample", f"1,{raw.DAY_1},10,4305481007,1,0", "`pid` (='4305481007') must be two integers"),
        ("raw_sample", f"1,{raw.DAY_1},10,{raw.PID},2,0", "`nonclk` (='2') must be 0 or 1"),
        ("raw_sample", f"1,{raw.DAY_1},10,{raw.PID},1,1", "`nonclk` (=1) must be 1 - `clk`"),
        ("raw_sample", f"1,{raw.DAY_1},13,{raw.PID},1,0", "`adgroup_id` (=13) must occur in ad_feature.csv"),
        ("ad_feature", "13,5,6,7,8,cheap", "`price` (='cheap') must be a number of at least 0"),
        ("ad_feature", "13,5,6,7,8,-1.0", "`price` (='-1.0') must be a number of at least 0"),
        ("ad_feature", "13,5,6,7,8,nan", "`price` (='nan') must be a number of at least 0"),
        ("ad_feature", "13,NULL,6,7,8,1.0", "`cate_id` (='NULL') must be an integer"),
        (
            "ad_feature",
            "13,5,6,7,none,1.0",
            "`brand` (='none') must be an integer of at least 0 and at most 18 digits, or",
        ),
        ("ad_feature", "10,1,1,1,1,1.0", "`adgroup_id` (=10) must occur once"),
        ("user_profile", "1,0,5,2,5,,3,0,3", "`userid` (=1) must occur once"),
        ("user_profile", "5,0,5,2,5,,3,0,x", "`new_user_class_level` (='x') must be an integer"),
        ("behavior_log", f"1,{raw.DAY_1},look,5,8", "`btag` (='look') must be one of ['pv', 'cart', 'fav', 'buy']"),
        ("behavior_log", f"1,{raw.DAY_1},pv,5,", "`brand` (='') must be an integer"),
        ("behavior_log", f'1,{raw.DAY_1},pv,5,"8"', "`brand` (='\"8\"') must be an integer"),
        ("behavior_log", f"1,{raw.DAY_1},pv,5,8\xff", "`brand` (='8ÿ') must be an integer"),
    ],
)
def test_a_bad_row_is_refused_or_put_aside(tmp_path: Path, name: str, line: str, reason: str) -> None:
    good = raw.LINES[name]
    folder = raw.write(tmp_path / "raw", **{name: [*good[:2], line, *good[2:]]})
    with pytest.raises(InputError, match="^" + re.escape(f"{folder / name}.csv, line 4: {reason}")):
        prepare_taobao(folder, tmp_path / "out", history_length=1)
    assert not (tmp_path / "out").exists()

    directory = prepare_taobao(folder, tmp_path / "out", history_length=1, bad_rows="quarantine")
    aside = (directory / "bad_rows.tsv").read_bytes().decode("latin-1")
    assert aside.startswith(f"{folder / name}.csv\t4\t")
    assert json.loads((directory / "report.json").read_text())["bad_rows"] == {f"{name}.csv": 1}
    shutil.rmtree(folder)
    clean = prepare_taobao(raw.write(folder), tmp_path / "clean", history_length=1)
    one, other = (  # valid is drawn by line number, which the bad line moves
        [
            pl.concat([pl.read_parquet(folder / f"{name}.parquet") for name in ("train", "valid")])
            for folder in (directory, clean)
        ]
    )
    assert one.sort(one.columns).equals(other.sort(one.columns))
    assert pl.read_parquet(directory / "test.parquet").equals(pl.read_parquet(clean / "test.parquet"))


def test_too_many_bad_rows(tmp_path: Path) -> None:
    folder = raw.write(tmp_path / "raw", user_profile=["x"] * 3)
    with pytest.raises(InputError, match=re.escape("line 4: must have 9 values, not 1; that is more bad rows than")):
        prepare_taobao(folder, tmp_path / "out", bad_rows="quarantine", bad_rows_limit=2)


@pytest.mark.parametrize("name", list(raw.HEADERS))
def test_wrong_files(tmp_path: Path, name: str) -> None:
    folder = raw.write(tmp_path / "raw")
    file = folder / f"{name}.csv"
    content = file.read_bytes()
    header = raw.HEADERS[name]
    for changed, sentence in [
        (b"", f"{file}: must not be empty"),
        (
            content.replace(b"\n", b"\r\n", 1),
            f"{file}, line 1: the header must be {header!r}, not {header + chr(13)!r}",
        ),
        (content[len(header) + 1 :], f"{file}, line 1: the header must be {header!r}, not "),
        (f"{header}\n".encode(), f"{file}: must have at least one good row after the header"),
        (f"{header}".encode(), f"{file}: must have at least one good row after the header"),
        (content[:-1], f"{file}, line {1 + len(raw.LINES[name])}: must end in a line feed; the file may be cut short"),
    ]:
        file.write_bytes(changed)
        with pytest.raises(InputError, match="^" + re.escape(sentence)):
            prepare_taobao(folder, tmp_path / "out", purchase_days=1)
    file.unlink()
    with pytest.raises(InputError, match=re.escape(f"{file}: no such file")):
        prepare_taobao(folder, tmp_path / "out", purchase_days=1)
    (folder / f"{name}.csv.gz").write_bytes(gzip.compress(content)[:-6])
    with pytest.raises(InputError, match=r"\.gz: cannot be read to its end"):
        prepare_taobao(folder, tmp_path / "out", purchase_days=1)


def test_a_header_without_its_trailing_space_is_wrong(tmp_path: Path) -> None:
    folder = raw.write(tmp_path / "raw")
    file = folder / "user_profile.csv"
    file.write_text(file.read_text().replace("level \n", "level\n"))
    with pytest.raises(InputError, match="new_user_class_level ', not 'userid"):
        prepare_taobao(folder, tmp_path / "out")


def test_clicks_without_options_need_no_log(tmp_path: Path) -> None:
    folder = raw.write(tmp_path / "raw")
    (folder / "behavior_log.csv").unlink()
    assert len(read_split(prepare_taobao(folder, tmp_path / "out"), "test")) == 4


def test_swapped_labels_are_refused(tmp_path: Path) -> None:
    swapped = [line[:-3] + ",".join(reversed(line[-3:].split(","))) for line in raw.LINES["raw_sample"]]
    folder = raw.write(tmp_path / "raw", raw_sample=swapped)
    with pytest.raises(InputError, match=r"clicks \(11\) must be fewer than other impressions \(3\)"):
        prepare_taobao(folder, tmp_path / "out")


def test_the_report_shows_leaks_duplicates_and_profiles(tmp_path: Path) -> None:
    lines = [
        f"{user},{raw.DAY_1 + day * raw.DAY + user},{10 + (user % 5 < 2)},{raw.PID},"
        f"{int(user % 5 > 1)},{int(user % 5 < 2)}"
        for day in range(8)
        for user in range(1, 150)
    ]
    folder = raw.write(tmp_path / "raw", raw_sample=lines)
    directory = prepare_taobao(folder, tmp_path / "out")
    findings = "\n".join(json.loads((directory / "report.json").read_text())["findings"])
    assert "1,192 impressions read, 472 clicks" in findings
    assert "147 of 149 users have no profile" in findings
    assert "894 rows of the first seven days repeat the user, ad and place of another" in findings
    assert "149 rows of test have the user, ad and place of one of the first seven days" in findings
    assert "field adgroup_id alone predicts click with AUC 1.000: does it leak the label?" in findings


def test_a_sample_keeps_users_whole(tmp_path: Path) -> None:
    folder = TaobaoGenerator(3000, behaviors_per_row=3).write(tmp_path / "raw")
    whole = read_decoded(prepare_taobao(folder, tmp_path / "whole", history_length=3))
    part = read_decoded(prepare_taobao(folder, tmp_path / "part", history_length=3, sample=0.4))
    users = {row["user"] for row in part["train"] + part["valid"]}
    assert 0.2 < len(users) / len({row["user"] for row in whole["train"] + whole["valid"]}) < 0.6
    for split in ("train", "valid"):
        assert sum(row["user"] in users for row in whole[split]) == len(part[split])
    with pytest.raises(InputError, match=r"`sample` \(=1e-09\) keeps none of the \d+ users"):
        prepare_taobao(folder, tmp_path / "none", sample=1e-9)


def test_other_arguments_need_another_folder(tmp_path: Path) -> None:
    folder = raw.write(tmp_path / "raw")
    prepare_taobao(folder, tmp_path / "out")
    assert prepare_taobao(folder, tmp_path / "out") == tmp_path / "out"
    with pytest.raises(InputError, match="must be a new folder: it was prepared with"):
        prepare_taobao(folder, tmp_path / "out", min_count=2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"history_length": -1}, "`history_length` (=-1) must be at least 0"),
        ({"history_days": 0}, "`history_days` (=0) must be at least 1"),
        ({"purchase_days": -1}, "`purchase_days` (=-1) must be at least 0"),
        ({"min_count": 0}, "`min_count` (=0) must be at least 1"),
        ({"bad_rows": "skip"}, "`bad_rows` (='skip') must be one of"),
        ({"sample": 0}, "`sample` (=0.0) must be above 0 and at most 1"),
    ],
)
def test_wrong_arguments(tmp_path: Path, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        prepare_taobao(tmp_path, tmp_path / "out", **options)
