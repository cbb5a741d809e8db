"""With ``--redact``, nothing that is in a bad row occurs in what a job prints, saves or puts aside."""

import re
from pathlib import Path

import polars as pl
import pytest
import torch
from torch import Tensor

from tests.datasets.ali_ccp import raw as ali_ccp
from tests.datasets.taobao import raw as taobao
from tests.jobs import funnel
from torchrec_mtl.__main__ import main
from torchrec_mtl.data import Field, Schema
from torchrec_mtl.tasks import TaskChain

# Every value of a bad row has these digits, unless its rule allows too few.
SECRET = "98765"
SCHEMA = Schema(
    "rows",
    [
        Field("user", 2 * 10**9),
        Field("item", 9),
        Field("tags", 9, multi_valued=True),
        Field("words", 2 * 10**9, multi_valued=True, weight_column="shares"),
    ],
    TaskChain(["click", "buy"], weight_columns=["known", "known"]),
    dense=["price"],
    group="session",
)
ROWS = {
    "user": [987650, 987651, 987652],
    "item": [1, 2, 3],
    "tags": [[1], [], [2, 3]],
    "words": [[987653], [], [987654, 987655]],
    "shares": [[9.8765], [], [98.765, 987.65]],
    "price": [9876.5, 98765.0, 0.98765],
    "session": [987656, 987657, 987658],
    "click": [0.0, 1.0, 1.0],
    "buy": [0.0, 0.0, 1.0],
    "known": [1.0, 1.0, 1.0],
}
WRONG_ROWS = {  # column: value of the last row
    "id_above": ("item", 987659),
    "id_below": ("item", -987659),
    "id_null": ("item", None),
    "id_float": ("item", 9876.5),
    "id_text": ("user", "9876500"),
    "list_above": ("tags", [2, 987659]),
    "list_below": ("tags", [-987659]),
    "list_null": ("tags", [2, None]),
    "weights_fewer": ("shares", [98.765]),
    "weight_nan": ("shares", [98.765, float("nan")]),
    "weight_infinite": ("shares", [float("-inf"), 9.8765]),
    "dense_nan": ("price", float("nan")),
    "dense_infinite": ("price", float("inf")),
    "label_other": ("click", 98765.0),
    "label_negative": ("buy", -98765.0),
    "label_null": ("click", None),
    "label_without_parent": ("click", 0.0),
    "label_weight_negative": ("known", -98765.0),
    "label_weight_nan": ("known", float("nan")),
    "group_null": ("session", None),
    "group_float": ("session", 9876.5),
}
SHOWN = {"id_above", "id_below", "list_above", "list_below", "label_other", "label_negative", "label_weight_negative"}
NOT_FINITE = re.compile(r"=-?(nan|inf)")


def error(capsys: pytest.CaptureFixture[str]) -> str:
    """Everything that a job printed, an error at its end."""
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert said.err.splitlines()[-1].startswith("error: ")
    return said.out + said.err


@pytest.mark.parametrize("job", ["train", "compare"])
@pytest.mark.parametrize("kind", WRONG_ROWS)
def test_a_wrong_row_of_a_prepared_data_set(tmp_path, capsys, kind, job):
    column, value = WRONG_ROWS[kind]
    SCHEMA.save(tmp_path)
    columns = {**ROWS, column: [*ROWS[column][:-1], value]}
    if isinstance(value, str):
        columns[column] = [str(each) for each in columns[column]]
    for split in ("train", "valid", "test"):
        pl.DataFrame(columns, strict=False).write_parquet(tmp_path / f"{split}.parquet")
    data = "--dataset" if job == "train" else "--datasets"
    command = [job, data, str(tmp_path), "--models", "shared_bottom", "--output", str(tmp_path / "runs")]
    command += [] if job == "train" else ["--protocol", "paper"]
    assert main(command) == 2
    open_sentence = error(capsys)
    assert (SECRET in open_sentence) == (kind in SHOWN)
    assert main([*command, "--redact"]) == 2
    sentence = error(capsys)
    assert SECRET not in sentence
    assert not NOT_FINITE.search(sentence)
    for fact in (f"{tmp_path / 'train.parquet'}: column {column!r}", "row 2 (counted from 0)"):
        assert (fact in sentence) == (fact in open_sentence)
    assert column in sentence


def damaged(fields: list[str]) -> list[str]:
    """Lines that are wrong in one field each, or in their form."""
    each = [",".join([*fields[:i], f"x{SECRET}", *fields[i + 1 :]]) for i in range(len(fields))]
    line = ",".join(fields)
    return [*each, f"{line},{SECRET}", ",".join(fields[:-1]), f"{line}\r", f"\xe9\x00{line}", SECRET]


USER = f"{SECRET}4321"
ITEM = ("205", int(USER), "1.0")
SKELETON = ali_ccp.skeleton(ITEM, sample=int(USER))
COMMON = ali_ccp.common(("101", int(USER), "1.0"), key=f"{SECRET}ed2e3a667f8")
ALI_CCP = {
    "sample_skeleton_train": [
        *damaged(SKELETON.split(",")),
        SKELETON.replace(",1,205", f",{SECRET}4,205"),  # another number of features
        SKELETON.replace("205\x02", f"{SECRET}\x02"),
        SKELETON.replace(f"\x02{USER}", f"\x020{USER}"),
        SKELETON.replace("\x031.0", f"\x03{SECRET}e5"),
        SKELETON.replace("\x02", ""),
        ali_ccp.skeleton(ITEM, key=f"{SECRET}ed2e3a667f8"),  # no such common features
    ],
    "common_features_train": [*damaged(COMMON.split(",")), f"{COMMON}\n{COMMON}"],
}
TIME, SECOND = taobao.DAY_1, f"{taobao.DAY_1},10,{taobao.PID}"
TAOBAO = {
    "raw_sample": [
        *damaged(f"{USER},{SECOND},1,0".split(",")),
        f"{USER},{SECOND},1,1",  # clicked and not
        f"1,{TIME},{USER},{taobao.PID},1,0",  # no such ad
    ],
    "ad_feature": [*damaged(f"{USER},5,6,7,8,1.0".split(",")), f"{USER},1,1,1,1,1.0\n{USER},1,1,1,1,1.0"],
    "user_profile": [*damaged(f"{USER},0,5,2,5,,3,0,3".split(",")), f"{USER},0,5,2,5,,3,0,3\n{USER},0,5,2,5,,3,0,3"],
    "behavior_log": damaged(f"{USER},{TIME},pv,5,8".split(",")),
}
BAD_LINES = [
    (dataset, name, line)
    for dataset, files in {"ali_ccp": ALI_CCP, "taobao": TAOBAO}.items()
    for name, lines in files.items()
    for line in lines
]


def write_raw(dataset: str, folder: Path, name: str, line: str) -> tuple[list[str], int]:
    """Writes raw files, one with a bad line; returns the job that prepares them, and the line's number."""
    options = []
    if dataset == "ali_ccp":
        good = [ali_ccp.GOOD_COMMON] if name.startswith("common") else [ali_ccp.GOOD_SKELETON] * 40
        ali_ccp.write(folder, **{name: [*good, *line.split("\n")]})
        number = len(good) + 1
    else:
        taobao.write(folder, **{name: [*taobao.LINES[name], *line.split("\n")]})
        number, options = len(taobao.LINES[name]) + 2, ["--history-length", "1"]
    return ["prepare", dataset, "--raw", str(folder), *options], number + line.count("\n")


@pytest.mark.parametrize(("dataset", "name", "line"), BAD_LINES)
def test_a_bad_line_of_a_raw_file(tmp_path, capsys, monkeypatch, dataset, name, line):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command, number = write_raw(dataset, tmp_path / "raw", name, line)
    where = f"{tmp_path / 'raw' / name}.csv"

    assert main([*command, "--output", str(tmp_path / "strict"), "--redact"]) == 2
    sentence = error(capsys)
    assert f"{where}, line {number}: " in sentence
    assert SECRET not in sentence

    if name == "raw_sample":
        train = ["train", "--dataset", "taobao", "--raw", str(tmp_path / "raw"), "--sample", "0.5", "--redact"]
        assert main([*train, "--models", "shared_bottom", "--output", str(tmp_path / "runs")]) == 2
        assert SECRET not in error(capsys)

    aside = {}
    for option in ("--redact", "--bad-rows-limit=9"):
        output = tmp_path / option.strip("-")
        assert main([*command, "--bad-rows", "quarantine", "--output", str(output), option]) == 0
        said = capsys.readouterr()
        assert SECRET not in said.out + said.err
        aside[option] = (output / "bad_rows.tsv").read_text("latin-1")
        for file in output.rglob("*.json"):
            # times and checksums may hold any digits
            assert SECRET not in re.sub(r'"(mtime_ns|mtime|ctime|inode|checksum)": \d+', "", file.read_text())
    assert SECRET in aside["--bad-rows-limit=9"]
    assert SECRET not in aside["--redact"]
    assert re.fullmatch(rf"{re.escape(where)}\t{number}\t[^\t]+\n", aside["--redact"])


@pytest.mark.parametrize("name", taobao.HEADERS)
def test_a_file_without_its_header(tmp_path, capsys, name):
    command, _ = write_raw("taobao", tmp_path / "raw", name, "")
    file = tmp_path / "raw" / f"{name}.csv"
    file.write_text(f"{SECRET},1,1\n")
    for options, seen in (([], True), (["--redact"], False)):
        assert main([*command, "--output", str(tmp_path / "out"), *options]) == 2
        assert (SECRET in error(capsys)) == seen


def test_the_batch_that_a_fault_saves(tmp_path, capsys):
    data = funnel.prepare(tmp_path / "tiny")
    rows = pl.read_parquet(data / "train.parquet")
    prices = [3e38 if row == 77 else 9.8765 for row in range(rows.height)]
    rows.with_columns(price=pl.Series(prices)).write_parquet(data / "train.parquet")
    command = ["train", "--dataset", str(data), "--output", str(tmp_path), "--models", "shared_bottom"]
    saved = {}
    for name, options in (("open", []), ("redacted", ["--redact"])):
        assert main([*command, "--name", name, *options, "training.batch_size=64", "embedding_dim=4"]) == 1
        assert "logits or labels of click in 1 of 64 rows" in error(capsys)
        (file,) = (tmp_path / name).rglob("non_finite_step_*.pt")
        saved[name] = torch.load(file, weights_only=True)
    hidden, whole = saved["redacted"], saved["open"]
    assert hidden["sparse_values"] is None
    assert whole["dense_features"].unique().tolist() == pytest.approx([9.8765, 3e38])
    assert hidden["dense_features"].unique().tolist() == pytest.approx([1.0, 1e38])
    for part in ("sparse_lengths", "labels", "logits"):
        torch.testing.assert_close(hidden[part], whole[part], equal_nan=True)
    assert hidden.keys() == whole.keys()
    tensors = {part for part, value in hidden.items() if isinstance(value, Tensor)}
    assert tensors == {"dense_features", "sparse_lengths", "labels", "logits"}  # one more must be redacted too
