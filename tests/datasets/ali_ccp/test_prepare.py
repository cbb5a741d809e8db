import json
import multiprocessing
import os
import random
import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
import torch

from tests.data.raw import forms
from tests.datasets.ali_ccp import raw, reference
from tests.datasets.vocabularies import read_vocabularies
from torchrec_mtl.data import Schema, read_split
from torchrec_mtl.data.raw import lines
from torchrec_mtl.data.table import TableEncoder
from torchrec_mtl.datasets import prepare_ali_ccp
from torchrec_mtl.datasets.ali_ccp.layout import FIELDS, RAW_SPLITS
from torchrec_mtl.errors import InputError

SPLIT_FILES = {"train": ("train", "valid"), "test": ("test",)}
FIRST_ID = 2**31 - 3  # so that some ids fit int32 and some do not


def random_raw(folder: Path, seed: int, num_rows: int = 900) -> Path:
    """Writes random files: few ids, fields that occur twice in a line and in both files, broken rows."""
    rng = random.Random(seed)

    def triples(most: int) -> list[tuple[str, int, str]]:
        size = rng.randint(1, most)
        return [
            (field, FIRST_ID + int(rng.paretovariate(0.7)) % 10**15, f"{rng.random() * 5:.5f}")
            for field in rng.choices(FIELDS, k=size)
        ]

    contents = {}
    for split in RAW_SPLITS:
        keys = [f"{rng.getrandbits(64):016x}" for _ in range(40)]
        contents[f"common_features_{split}"] = [raw.common(*triples(30), key=key) for key in keys]
        contents[f"sample_skeleton_{split}"] = [
            raw.skeleton(
                *triples(12),
                sample=sample,
                labels=rng.choices(["0,0", "1,0", "1,1", "0,1"], weights=[80, 10, 5, 1])[0],
                key=rng.choice(keys),
            )
            for sample in range(1, num_rows + 1)
        ]
    return raw.write(folder, **contents)


@pytest.fixture(scope="module", params=[0, 1])
def random_files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_raw(tmp_path_factory.mktemp("raw"), request.param)


def read_rows(directory: Path, split: str) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(directory / f"{name}.parquet") for name in SPLIT_FILES[split]])


def read_report(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "report.json").read_text())


def small_blocks(monkeypatch: pytest.MonkeyPatch, num_bytes: int = 20_000) -> None:
    monkeypatch.setattr(lines, "read_blocks", lambda stream, read=lines.read_blocks: read(stream, num_bytes))


def test_aitm_agrees_with_the_reference(random_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)
    directory = prepare_ali_ccp(random_files, tmp_path / "aitm")
    rows, codes = reference.aitm(random_files)
    vocabularies = read_vocabularies(directory)
    schema = Schema.load(directory)
    assert list(schema.field_names) == reference.AITM_FIELDS
    for field in schema.fields:
        assert vocabularies[field.name] == list(codes[field.name])
        assert field.num_embeddings == len(codes[field.name]) + 1
    assert sum(map(len, codes.values())) > 40
    names = ["click", "purchase", *reference.AITM_FIELDS]
    assert read_rows(directory, "test").select(names).rows() == rows["test"]
    assert Counter(read_rows(directory, "train").select(names).rows()) == Counter(rows["train"])


def test_full_has_every_feature_and_weight(random_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)
    directory = prepare_ali_ccp(random_files, tmp_path / "full", "full")
    vocabularies = read_vocabularies(directory)
    impressions = {split: reference.read(random_files, split) for split in RAW_SPLITS}
    referred = [*impressions["train"], *((common, common) for _, common in impressions["train"])]
    for field in FIELDS:
        seen = {number for line, _ in referred for name, number, _ in line.features if name == field}
        assert vocabularies[field] == sorted(seen)
    expected = []
    for line, common in impressions["test"]:
        row = [line.click, line.purchase, int(line.click >= line.purchase)]
        for field in FIELDS:
            features = [(number, value) for name, number, value in common.features + line.features if name == field]
            codes = {number: code for code, number in enumerate(vocabularies[field], 1)}
            row += [[codes.get(number, 0) for number, _ in features], [value for _, value in features]]
        expected.append(row)
    columns = [column for field in FIELDS for column in (field, f"{field}_weights")]
    for found, wanted in zip(
        read_rows(directory, "test").select("click", "purchase", "known", *columns).rows(), expected, strict=True
    ):
        assert list(found[:3]) == wanted[:3]
        assert list(found[3::2]) == wanted[3::2]
        for weights, wanted_weights in zip(found[4::2], wanted[4::2], strict=True):
            assert weights == pytest.approx(wanted_weights, rel=1e-6)
    assert read_rows(directory, "train").height == len(impressions["train"])


@pytest.mark.parametrize("protocol", ["aitm", "full"])
def test_new_rows_get_the_ids_of_the_prepared_ones(random_files: Path, tmp_path: Path, protocol: str) -> None:
    directory = prepare_ali_ccp(random_files, tmp_path / protocol, protocol)
    fields = Schema.load(directory).field_names
    rows = []
    for line, common in reference.read(random_files, "test"):
        features = common.features + line.features if protocol == "full" else line.features + common.features
        if protocol == "aitm":
            if line.purchase <= line.click:
                rows.append(dict.fromkeys(fields) | {field: number for field, number, _ in features})
            continue
        ids = {field: [number for name, number, _ in features if name == field] for field in fields}
        weights = {f"{field}_weights": [value for name, _, value in features if name == field] for field in fields}
        rows.append(ids | weights)
    kinds = {field: pa.int64() if protocol == "aitm" else pa.list_(pa.int64()) for field in fields}
    kinds |= {f"{field}_weights": pa.list_(pa.float32()) for field in fields if protocol == "full"}
    batch = pa.RecordBatch.from_pylist(rows, pa.schema(kinds))
    encoded = TableEncoder.load(directory).encode(batch)
    assert encoded.equals(read_rows(directory, "test").select(encoded.columns))


def test_full_reads_with_weights(random_files: Path, tmp_path: Path) -> None:
    directory = prepare_ali_ccp(random_files, tmp_path / "full", "full")
    rows, read = read_rows(directory, "test"), read_split(directory, "test")
    batch = read.batch(torch.arange(len(read)))
    for field in FIELDS:
        found = batch.sparse_features[field]
        assert found.values().tolist() == rows[field].explode().drop_nulls().to_list()
        assert found.weights().tolist() == rows[f"{field}_weights"].explode().drop_nulls().to_list()
        assert found.lengths().tolist() == rows[field].list.len().to_list()
    assert batch.weights.T.tolist() == [rows["known"].to_list()] * 2


def test_users_are_raw_ids_from_either_file(random_files: Path, tmp_path: Path) -> None:
    for protocol in ("aitm", "full"):
        directory = prepare_ali_ccp(random_files, tmp_path / protocol, protocol, broken_funnel="keep")
        expected = [
            next((number for name, number, _ in common.features + line.features if name == "101"), 0)
            for line, common in reference.read(random_files, "test")
        ]
        assert read_rows(directory, "test")["user"].to_list() == expected
        assert max(expected) > 2**31


def test_it_reads_like_any_prepared_data_set(random_files: Path, tmp_path: Path) -> None:
    directory = prepare_ali_ccp(random_files, tmp_path / "aitm")
    schema = Schema.load(directory)
    for split in ("train", "valid", "test"):
        read = read_split(directory, split)
        assert len(read) == schema.num_rows[split]
        assert read.schema.tasks.names == ("click", "purchase")
    assert schema.vocabulary_digest == TableEncoder.load(directory).save(tmp_path)


def test_every_form_of_the_files_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = random_raw(tmp_path / "plain", 3)
    contents = {file.name: file.read_bytes() for file in folder.iterdir()}
    expected = prepare_ali_ccp(folder, tmp_path / "from plain")
    for form in ("gz", "zst", "tar.gz"):
        for split in RAW_SPLITS:
            split_contents = {name: content for name, content in contents.items() if split in name}
            forms.write(tmp_path / form, split_contents, form, f"sample_{split}")
        found = prepare_ali_ccp(tmp_path / form, tmp_path / f"from {form}")
        for name in ("train.parquet", "valid.parquet", "test.parquet"):
            assert (found / name).read_bytes() == (expected / name).read_bytes()
        assert Schema.load(found).vocabulary_digest == Schema.load(expected).vocabulary_digest


def test_valid_is_a_tenth_that_the_seed_draws(random_files: Path, tmp_path: Path) -> None:
    sizes = []
    for seed in (0, 1):
        directory = prepare_ali_ccp(random_files, tmp_path / str(seed), seed=seed)
        sizes.append(read_rows(directory, "train").height)
        assert 50 < Schema.load(directory).num_rows["valid"] < 140
    valid = [pl.read_parquet(tmp_path / seed / "valid.parquet") for seed in ("0", "1")]
    assert sizes[0] == sizes[1]
    assert not valid[0].equals(valid[1])


def test_a_sample_is_part_of_the_whole(random_files: Path, tmp_path: Path) -> None:
    whole = prepare_ali_ccp(random_files, tmp_path / "whole", broken_funnel="keep")
    sample = prepare_ali_ccp(random_files, tmp_path / "sample", broken_funnel="keep", sample=0.3)
    users = [read_rows(directory, "test")["user"].to_list() for directory in (whole, sample)]
    assert 200 < len(users[1]) < 340
    remaining = iter(users[0])
    assert all(user in remaining for user in users[1])  # in the same order


@pytest.mark.parametrize("protocol", ["aitm", "full"])
def test_blocks_of_which_a_sample_keeps_no_row(
    random_files: Path, tmp_path: Path, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepare_ali_ccp(random_files, tmp_path / "whole", protocol, sample=0.1)
    small_blocks(monkeypatch, 2000)
    found = prepare_ali_ccp(random_files, tmp_path / "blocks", protocol, sample=0.1)
    for split in ("train", "test"):
        assert read_rows(found, split).equals(read_rows(whole, split))


@pytest.mark.parametrize("protocol", ["aitm", "full"])
def test_broken_rows(random_files: Path, tmp_path: Path, protocol: str) -> None:
    lines = [line for line, _ in reference.read(random_files, "test")]
    broken = [i for i, line in enumerate(lines, 1) if line.purchase > line.click]
    dropped = prepare_ali_ccp(random_files, tmp_path / "drop", protocol, broken_funnel="drop")
    assert read_rows(dropped, "test").height == len(lines) - len(broken)
    assert read_report(dropped)["read"]["test"]["broken"] == len(broken)
    assert Schema.load(dropped).tasks.weight_columns == (None, None)
    kept = prepare_ali_ccp(random_files, tmp_path / "keep", protocol, broken_funnel="keep")
    assert read_rows(kept, "test")["known"].to_list() == [line.purchase <= line.click for line in lines]
    assert any("kept with weight 0" in finding for finding in read_report(kept)["findings"])
    if protocol == "aitm":
        assert read_split(kept, "test").base_rates()[1] < sum(line.purchase for line in lines) / len(lines)
    first = next(
        i for i, (line, _) in enumerate(reference.read(random_files, "train"), 1) if line.purchase > line.click
    )
    with pytest.raises(InputError, match=rf"sample_skeleton_train\.csv, line {first}: purchase \(=1\) must not"):
        prepare_ali_ccp(random_files, tmp_path / "refuse", protocol, broken_funnel="refuse")


GOOD = raw.GOOD_SKELETON
BAD_FILES: list[tuple[str, list[str] | bytes, int, str]] = [
    ("sample_skeleton_train", [GOOD, GOOD.rpartition(",")[0]], 2, "must have 6 columns, not 5"),
    ("sample_skeleton_train", [GOOD, "", GOOD], 2, "must have 6 columns, not 1"),
    ("sample_skeleton_test", [GOOD.replace("\x03", "", 1)], 1, "must be a field, \\x02, an id, \\x03 and a value"),
    ("sample_skeleton_train", [GOOD, GOOD.replace(",0,", ",x,", 1)], 2, "`click` (='x') must be 0 or 1"),
    ("sample_skeleton_train", [GOOD.replace("205\x02", "206_14\x02")], 1, "field '206_14' of a feature must be one of"),
    (
        "sample_skeleton_train",
        [GOOD.replace("f8,3", "f8,9")],
        1,
        "`feature_num` (=9) must be the number of features (3)",
    ),
    ("sample_skeleton_test", [GOOD, raw.skeleton(("205", 1, "1.0"), key="0" * 16)], 2, "must occur in"),
    (
        "sample_skeleton_train",
        ["sample_id,click,purchase,common_feature_index,feature_num,feature_list"],
        1,
        "no header",
    ),
    ("sample_skeleton_train", f"{GOOD}\r\n{GOOD}\r\n".encode(), 1, "must end in a line feed alone"),
    ("sample_skeleton_train", f"{GOOD}\n{GOOD}".encode(), 2, "the file may be cut short"),
    ("common_features_train", [raw.GOOD_COMMON, raw.GOOD_COMMON], 2, f"(='{raw.COMMON_KEY}') must occur once"),
    ("common_features_test", [raw.GOOD_COMMON, "\xff\xfe"], 2, "must have 3 columns, not 1"),
]


@pytest.mark.parametrize(("name", "content", "line", "message"), BAD_FILES)
def test_a_bad_row_is_refused(tmp_path: Path, name: str, content: list[str] | bytes, line: int, message: str) -> None:
    files = raw.write(tmp_path / "raw", **{name: content})
    start = re.escape(f"{files / name}.csv, line {line}: ")
    with pytest.raises(InputError, match=f"^{start}.*{re.escape(message)}"):
        prepare_ali_ccp(files, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["raw"]


def test_bad_rows_are_put_aside_and_change_nothing_else(tmp_path: Path) -> None:
    rows = raw.write(tmp_path / "good")
    good = (rows / "sample_skeleton_train.csv").read_text("latin-1").splitlines()
    bad = [GOOD.replace(",0,", ",x,", 1), "", "\xe9\x00\xff", raw.skeleton(("205", 1, "1.0"), key="0" * 16)]
    mixed = [*good[:10], bad[0], *good[10:20], *bad[1:], *good[20:]]
    files = raw.write(tmp_path / "mixed", sample_skeleton_train=mixed)
    with pytest.raises(InputError, match=r"line 24: .*; that is more bad rows than `bad_rows_limit` \(=3\)"):
        prepare_ali_ccp(files, tmp_path / "out", bad_rows="quarantine", bad_rows_limit=3)
    found = prepare_ali_ccp(files, tmp_path / "out", bad_rows="quarantine", bad_rows_limit=4)
    aside = [line.split(b"\t") for line in (found / "bad_rows.tsv").read_bytes().split(b"\n")[:-1]]
    assert [int(number) for _, number, _, _ in aside] == [11, 22, 23, 24]
    assert [text.decode("latin-1") for *_, text in aside] == bad
    assert read_report(found)["bad_rows"] == {"sample_skeleton_train.csv": 4}
    assert "sample_skeleton_train.csv: 4 bad rows were put aside" in read_report(found)["findings"]
    expected = read_rows(prepare_ali_ccp(rows, tmp_path / "expected"), "train")
    assert read_rows(found, "train").sort(pl.all()).equals(expected.sort(pl.all()))


def test_a_split_without_rows(tmp_path: Path) -> None:
    files = raw.write(tmp_path / "raw", sample_skeleton_test=["bad"])
    with pytest.raises(InputError, match=r"sample_skeleton_test\.csv: must have a good row to keep; 0 are good"):
        prepare_ali_ccp(files, tmp_path / "out", bad_rows="quarantine")
    files = raw.write(tmp_path / "raw", sample_skeleton_train=[GOOD])
    with pytest.raises(InputError, match="no row is left for valid"):
        prepare_ali_ccp(files, tmp_path / "out")
    raw.write(tmp_path / "raw", common_features_test=b"")
    with pytest.raises(InputError, match=r"common_features_test\.csv: must not be empty"):
        prepare_ali_ccp(files, tmp_path / "out")


def test_labels_in_another_order(tmp_path: Path) -> None:
    rows = [raw.skeleton(("205", 1, "1.0"), sample=i, labels="0,1") for i in range(1, 41)]
    files = raw.write(tmp_path / "raw", sample_skeleton_train=rows)
    with pytest.raises(InputError, match=r"purchases \(40\) must be rarer than clicks \(0\); the columns must be"):
        prepare_ali_ccp(files, tmp_path / "out")


def test_the_report_shows_leaks_and_duplicates(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = []
    for i in range(1, 2001):
        click = int(rng.random() < 0.3)
        item = ("205", 1000 + rng.randrange(10**6), "1.0")
        rows.append(raw.skeleton(item, ("301", 7 + click, "1.0"), sample=i, labels=f"{click},0"))
    files = raw.write(tmp_path / "raw", sample_skeleton_train=[*rows, rows[5]], sample_skeleton_test=rows[:30])
    directory = prepare_ali_ccp(files, tmp_path / "out")
    report = read_report(directory)
    assert report["leak_auc"]["301 click"] == 1
    assert report["leak_auc"]["301 purchase"] is None
    assert report["leak_auc"]["101 click"] == 0.5
    assert "field 301 alone predicts click with AUC 1.000: does it leak the label?" in report["findings"]
    distinct = len({row.split(",", 5)[5] for row in rows})
    assert report["duplicates"] == {"within train": len(rows) + 1 - distinct, "test rows in train": 30}
    assert report["grouped"] == {"train": True, "test": True}
    assert report["read"]["train"]["rows"] == 2001


def die_in_the_second_pass(files: Path, output: Path) -> None:
    def progress(stage: str, rows: int, share: float) -> None:
        if stage == "train rows":
            os.kill(os.getpid(), signal.SIGKILL)

    prepare_ali_ccp(files, output, progress=progress)


def test_a_killed_preparation_starts_over(tmp_path: Path) -> None:
    files = raw.write(tmp_path / "raw")
    process = multiprocessing.get_context("spawn").Process(
        target=die_in_the_second_pass, args=(files, tmp_path / "out")
    )
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    found = prepare_ali_ccp(files, tmp_path / "out")
    expected = prepare_ali_ccp(files, tmp_path / "expected")
    assert read_rows(found, "train").equals(read_rows(expected, "train"))
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]
    assert not (found / "parts").exists()


def test_a_folder_prepared_with_other_arguments_is_refused(random_files: Path, tmp_path: Path) -> None:
    directory = prepare_ali_ccp(random_files, tmp_path / "out")
    assert prepare_ali_ccp(random_files, tmp_path / "out") == directory
    with pytest.raises(InputError, match=r"`output` \(='.*out'\) must be a new folder: it was prepared with"):
        prepare_ali_ccp(random_files, tmp_path / "out", seed=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "all"}, "`protocol` (='all') must be one of ['aitm', 'full']"),
        ({"bad_rows": "lax"}, "`bad_rows` (='lax') must be one of ['strict', 'quarantine']"),
        ({"bad_rows_limit": 0}, "`bad_rows_limit` (=0) must be at least 1"),
        ({"broken_funnel": "mend"}, "`broken_funnel` (='mend') must be one of ['drop', 'keep', 'refuse']"),
        ({"sample": 0}, "`sample` (=0.0) must be above 0 and at most 1"),
        ({"seed": -1}, "`seed` (=-1) must be at least 0"),
        ({}, "must be a folder"),
    ],
)
def test_wrong_arguments(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        prepare_ali_ccp(tmp_path / "none", tmp_path / "out", **changes)
