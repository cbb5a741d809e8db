"""`prepare table` and `--dataset shop.py`: what a user sees of a declared table, and of a wrong one."""

import json
import os
import sys
from pathlib import Path

import polars as pl
import pytest
from torchx.runner import get_runner

from examples import shop_log
from torchrec_mtl.__main__ import main
from torchrec_mtl.data import SPLITS, Schema, read_split
from torchrec_mtl.data.table import TableEncoder
from torchrec_mtl.jobs.compare.job import parser, plans
from torchrec_mtl.jobs.declarations import find_table
from torchrec_mtl.jobs.run_config import describe_data
from torchrec_mtl.training import monitor

DECLARATION = """\
from torchrec_mtl import *
SHOP = Table("shop", "shop.csv", TaskChain(["click", "cart", "buy"]), fields=[
    Vocabulary("user", min_count=2),
    Vocabulary("item"),
    Bins("price", 8),
    Dense("ctr_7d"),
    TimeOf("hour", column="ts"),
    History("recent", "item", last=5, within="7d"),
], time="ts", group="user", split=ByTime("2026-11-17", "2026-11-19"))
"""
TRAIN = ["train", "--dataset", "shop.py", "--models", "shared_bottom", "--name", "run"]
TRAIN += ["training.max_epochs=1", "training.batch_size=512", "embedding_dim=4"]
ENTRIES = {
    "prepare": ["prepare", "table", "--declaration", "shop.py", "--output", "out"],
    "show": ["prepare", "table", "--declaration", "shop.py", "--show"],
    "train": TRAIN,
    "train with settings": [*TRAIN, "--settings", "paper"],
    "compare": ["compare", "--datasets", "shop.py", "--models", "shared_bottom", "--workers", "1"],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The present folder, with shop.csv and shop.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = [dict(zip(shop_log.COLUMNS, map(str, row), strict=True)) for row in shop_log.rows()]
    pl.DataFrame(rows).gather_every(10).write_csv("shop.csv")
    Path("shop.py").write_text(DECLARATION)
    return tmp_path


def cached(folder):
    return sorted((folder / "cache").glob("torchrec_mtl/shop-*"))


def test_it_is_prepared_and_tells_what_it_found(folder, capsys, monkeypatch):
    monkeypatch.setattr(monitor, "SECONDS_BETWEEN_LINES", 0)
    arguments = ["prepare", "table", "--declaration", "shop.py:SHOP", "--output", "out"]
    assert main(arguments) == 0
    told = capsys.readouterr()
    schema = Schema.load("out")
    assert sum(schema.num_rows.values()) == 2000
    assert f"field item: {schema.fields[1].num_embeddings} ids" in told.out
    assert told.out.endswith("prepared: out\n")
    assert "rows/s" in told.err
    assert TableEncoder.load("out").table == find_table("shop.py")
    assert main(arguments) == 0
    os.utime("shop.csv", ns=(1, 1))
    capsys.readouterr()
    assert main(arguments) == 2
    said = "`output` (='out') must be a new folder: files of `source` (='shop.csv') have changed since it was prepared"
    assert capsys.readouterr().err == f"error: {said}\n"


def test_bad_rows(folder, capsys):
    text = Path("shop.csv").read_text().splitlines()
    text[5] = text[5].replace(text[5].split(",")[5], "cheap")
    Path("shop.csv").write_text("\n".join(text) + "\n")
    arguments = ["prepare", "table", "--declaration", "shop.py", "--output", "out"]
    said = "column 'price', row 4 (counted from 0): 'cheap' must be a number"
    assert main(arguments) == 2
    assert said in capsys.readouterr().err
    assert not Path("out").exists()
    assert main([*arguments[:-2], "--show"]) == 0
    assert said in capsys.readouterr().out
    assert main([*arguments, "--bad-rows", "quarantine", "--bad-rows-limit", "1"]) == 0
    assert "shop.csv: 1 bad rows were put aside" in capsys.readouterr().out


def test_show_says_what_would_be_done_and_writes_nothing(folder, capsys):
    before = sorted(folder.rglob("*"))
    assert main(["prepare", "table", "--declaration", "shop.py", "--show"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sorted(folder.rglob("*")) == before
    assert max(map(len, lines)) <= 100
    words = [line.split() for line in lines]
    assert lines[0] == "shop: click -> cart -> buy"
    assert "source: 1 file, csv, 116.6 KiB" in lines
    assert "  valid  from 2026-11-17, before 2026-11-19" in lines
    assert ["recent", "History", "earlier", "'item'", "item", "last=5,", "within='7d'"] in words
    assert ["hour", "TimeOf", "'ts'", "hour", "part='hour'"] in words
    first = pl.read_csv("shop.csv", infer_schema=False).row(0, named=True)
    (shown,) = [line for line in words if line[:1] == ["user"] and "->" in line]
    assert shown[2:4] == [first["user"], "->"]


def test_csv_lines_that_are_no_rows_are_named_or_put_aside(folder, capsys):
    lines = Path("shop.csv").read_text().splitlines()
    lines[5:5], lines[-1:] = ["u1,secret,too,few"], ["2026-11-20,secret,and,far,too,many,values,1,1,1,1,1"]
    Path("shop.csv").write_text("\n".join(lines) + "\n")
    prepare = ["prepare", "table", "--declaration", "shop.py"]
    assert main([*prepare, "--output", "strict"]) == 2
    rule = "error: shop.csv: row 4 (counted from 0): must have 10 values, as the header, not 4: "
    assert capsys.readouterr().err.splitlines()[-1] == f"{rule}'u1,secret,too,few'"
    assert main([*prepare, "--show"]) == 0
    assert "2 rows break a rule, and would stop the preparation or be put aside" in capsys.readouterr().out
    for number, redact in enumerate([[], ["--redact"]]):
        assert main([*prepare, "--output", str(number), "--bad-rows", "quarantine", *redact]) == 0
        aside = Path(str(number), "bad_rows.tsv").read_text().splitlines()
        assert [line.split("\t")[2].split(":")[0] for line in aside] == [
            "row 4 (counted from 0)",
            f"row {len(lines) - 2} (counted from 0)",
        ]
        assert ["secret" in line for line in aside] == [not redact] * 2
        assert sum(Schema.load(str(number)).num_rows.values()) == len(lines) - 3
    assert main([*prepare, "--output", "limit", "--bad-rows", "quarantine", "--bad-rows-limit", "1"]) == 2
    assert "more bad rows than `bad_rows_limit` (=1)" in capsys.readouterr().err


def test_show_says_how_rows_are_split(folder, capsys):
    show = ["prepare", "table", "--declaration", "shop.py", "--show"]
    Path("shop.py").write_text(DECLARATION.replace('ByTime("2026-11-17", "2026-11-19")', 'ByHash("user", test=0.3)'))
    assert main(show) == 0
    lines = capsys.readouterr().out.splitlines()
    found = lines[lines.index("splits by a hash of 'user'") :]
    assert found[1:4] == ["  train  0.6 of its values", "  valid  0.1 of its values", "  test   0.3 of its values"]
    Path("shop.py").write_text(DECLARATION.replace('ByTime("2026-11-17", "2026-11-19")', 'ByColumn("half")'))
    whole = pl.read_csv("shop.csv", infer_schema=False)
    whole.with_columns(half=pl.lit("test")).write_csv("shop.csv")
    assert main(show) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "splits: as column 'half' says" in lines
    assert "  of these rows: 0 train, 0 valid, 2,000 test" in lines
    sources = {split: f"{split}.csv" for split in ("train", "valid", "test")}
    for file in sources.values():
        Path(file).write_bytes(Path("shop.csv").read_bytes())
    text = DECLARATION.replace('"shop.csv"', repr(sources)).replace(', split=ByTime("2026-11-17", "2026-11-19")', "")
    Path("shop.py").write_text(text)
    assert main(show) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "splits: as the source names them" in lines
    assert [line.split()[::3] for line in lines[3:6]] == [[file, split] for split, file in sources.items()]
    assert "  of these rows: 2,000 train, 0 valid, 0 test" in lines


def test_long_names_and_lists_are_cut(folder, capsys):
    name = "a_column_with_a_name_of_more_than_forty_characters"
    rows = pl.read_csv("shop.csv", infer_schema=False).with_columns(pl.lit("|".join("abcdefghi" * 9)).alias(name))
    rows.rename({"user": "user_" * 9}).write_csv("shop.csv")
    text = DECLARATION.replace('"user"', f'"{"user_" * 9}"')
    Path("shop.py").write_text(text.replace("    Bins(", f'    Vocabulary("{name}", separator="|"),\n    Bins('))
    assert main(["prepare", "table", "--declaration", "shop.py", "--show"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    (line,) = [line for line in lines if line.startswith("  a_column_with_a_n...") and "->" in line]
    assert line.count("a|b|c|... -> [.. 10]") == 3


def test_the_first_rows_are_shown_with_their_histories(folder, capsys):
    rows = pl.read_csv("shop.csv", infer_schema=False)
    pl.concat([rows.slice(0, 1)] * 3).with_columns(
        ts=pl.Series([f"2026-11-0{day}T00:00:00" for day in (1, 2, 3)]), item=pl.Series(["a", "b", "c"])
    ).write_csv("shop.csv")
    assert main(["prepare", "table", "--declaration", "shop.py", "--show"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.split()[:2] == ["recent", "5"]]
    assert line.split()[2:] == ["[]", "[2]", "[2,", "3]"]  # ids of a and b


WRONG = {
    "no file": (None, "shop.py: no such file"),
    "syntax": (DECLARATION.replace("8),", "8,"), "shop.py, line 9: closing parenthesis"),
    "argument": (DECLARATION.replace("min_count", "min"), "shop.py, line 3: Vocabulary.__init__() got an unexpected"),
    "value": (DECLARATION.replace("8)", "1)"), "shop.py, line 5: `num_bins` of field `price` (=1) must be at least 2"),
    "kind": (DECLARATION.replace("Bins", "Bin"), "shop.py, line 5: name 'Bin' is not defined; the nearest is 'Bins'"),
    "import": ("from torchrec_mtl import Tabel", "shop.py, line 1: cannot import name 'Tabel' from"),
    "reference": (
        DECLARATION.replace('"recent", "item"', '"recent", "itm"'),
        "shop.py, line 2: field 'recent': field 'itm'",
    ),
    "raises": ("print(1 / 0)", "shop.py, line 1: division by zero (ZeroDivisionError)"),
    "exits": ("import sys\nsys.exit()", "shop.py, line 2: "),
    "no table": ("x = 1", "shop.py: must have one `Table`, not none"),
    "several": (DECLARATION + DECLARATION.replace("SHOP", "OTHER"), "name one of them, as shop.py:SHOP"),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(("text", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_declaration_is_one_sentence_before_anything_is_read(entry, text, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # without shop.csv: nothing could be read
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if text is not None:
        Path("shop.py").write_text(text)
    assert main(ENTRIES[entry]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert sorted(each.name for each in tmp_path.iterdir() if each.name != "__pycache__") == ["shop.py"] * (
        text is not None
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "one of the arguments --declaration --infer is required"),
        (["--declaration", "shop.py"], "`output` must name the folder of the prepared data set, or --show be given"),
        (["--declaration", "shop.py", "--output", "out", "--bad-rows", "drop"], "`bad_rows` (='drop') must be one of"),
        (["--declaration", "shop.py:SHOOP", "--show"], "table 'SHOOP' must be one of ['SHOP']; the nearest is 'SHOP'"),
        (["--declaration", "shop", "--show"], "one of your own is package.module:NAME"),
        (["--infer", "shop.csv", "--output", "shop.py"], "`output` (='shop.py') must be a new file"),
        (["--infer", "shop.csv", "--show"], "`show` must be with `declaration`"),
        (["--infer", "shop.csw"], "shop.csw: no such file or folder"),
        (["--infer", "shop.csv", "--rows", "0"], "`num_rows` (=0) must be at least 1"),
    ],
)
def test_a_wrong_command_line(folder, arguments, said, capsys):
    assert main(["prepare", "table", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert not Path("out").exists()


def test_infer_prints_or_writes_what_can_be_prepared(folder, capsys):
    assert main(["prepare", "table", "--infer", "shop.csv"]) == 0
    printed = capsys.readouterr().out
    assert main(["prepare", "table", "--infer", "shop.csv", "--output", "first.py"]) == 0
    assert Path("first.py").read_text() == printed
    assert main(["prepare", "table", "--declaration", "first.py", "--output", "out"]) == 0
    assert Schema.load("out").tasks.names == ("click", "cart", "buy")


def test_train_prepares_into_the_cache_once_for_each_state_of_the_source(folder, capsys):
    assert main(TRAIN) == 0
    (data,) = cached(folder)
    assert f"data: shop.py, in {data}" in capsys.readouterr().out
    results = json.loads(Path("runs/run/results.json").read_text())
    assert {"click", "cart", "buy"} <= {row["task"] for row in results}
    made = (data / "schema.json").stat().st_mtime_ns
    assert main([*TRAIN, "--name", "again"]) == 0
    assert [(each, (each / "schema.json").stat().st_mtime_ns) for each in cached(folder)] == [(data, made)]
    with Path("shop.csv").open("a") as file:
        file.write("2026-11-20T12:00:00,u0000,sku-000,c0,web,1.0,0.5,0,0,0\n")
    assert main([*TRAIN, "--name", "more"]) == 0
    assert len(cached(folder)) == 2
    Path("shop.py").write_text(DECLARATION.replace("last=5", "last=6"))
    assert main([*TRAIN, "--name", "longer"]) == 0
    assert len(cached(folder)) == 3


def test_a_sample_of_it_has_a_folder_of_its_own_and_the_declaration_runs_once(folder, capsys):
    once = 'print("the declaration runs", flush=True)\n'
    Path("shop.py").write_text(DECLARATION + once)
    assert main([*TRAIN, "--sample", "0.5"]) == 0
    (half,) = cached(folder)
    told = capsys.readouterr().out
    assert told.count("the declaration runs") == 1
    assert f"data: shop.py, 50% of its groups, in {half}" in told
    assert main([*TRAIN, "--name", "whole"]) == 0
    (whole,) = set(cached(folder)) - {half}
    users = [set(pl.read_parquet(data / "train.parquet")["user_group"]) for data in (half, whole)]
    assert 0.3 < len(users[0]) / len(users[1]) < 0.7
    evaluate = ["evaluate", "runs/run", "--dataset", "shop.py", "--sample"]
    assert main([*evaluate, "0.5"]) == 0
    capsys.readouterr()
    assert main([*evaluate, "1"]) == 2
    assert "must have the" in capsys.readouterr().err
    assert main([*TRAIN, "--sample", "0.5", "--days", "2026-11-01"]) == 2
    assert "`sample` (=0.5) must not be given with `days`" in capsys.readouterr().err


def test_compare_plans_runs_on_it(folder):
    options = ["--datasets", "shop.py,shop.py:SHOP", "--models", "shared_bottom", "--protocol", "paper"]
    first, second = plans(parser().parse(options))
    assert [first.dataset] == [second.dataset] == cached(folder)
    assert first.data == describe_data({split: read_split(first.dataset, split) for split in SPLITS})


def test_a_table_of_a_module(folder, capsys, monkeypatch):
    monkeypatch.syspath_prepend(folder)
    Path("log_of_a_shop.py").write_text(DECLARATION)
    assert main([*TRAIN, "--dataset", "log_of_a_shop:SHOP"]) == 0
    assert main(["prepare", "table", "--declaration", "log_of_a_shop:SHOP", "--show"]) == 0
    capsys.readouterr()
    Path("wrong_log.py").write_text("\n1 / 0\n")
    assert main([*TRAIN, "--dataset", "wrong_log:SHOP"]) == 2
    assert capsys.readouterr().err == "error: wrong_log.py, line 2: division by zero (ZeroDivisionError)\n"
    assert main([*TRAIN, "--dataset", "log_of_a_shop:Bins"]) == 2
    assert "data set 'log_of_a_shop:Bins' must be a DataSet or a Table, not a type" in capsys.readouterr().err


def test_a_model_that_does_not_support_the_tasks_is_refused_before_the_preparation(folder, capsys):
    text = DECLARATION.replace('TaskChain(["click", "cart", "buy"])', 'TaskForest(Task("click"), Task("cart"))')
    Path("shop.py").write_text(text)
    assert main([*TRAIN, "--models", "esmm"]) == 2
    assert "must have tasks of which some need another" in capsys.readouterr().err
    assert cached(folder) == []


def test_show_config_has_the_tables_of_what_is_prepared(folder, capsys):
    assert main([*TRAIN, "--show-config"]) == 0
    told = capsys.readouterr()
    assert (json.loads(told.out).keys(), cached(folder)) == ({"shared_bottom"}, [])
    assert "the bytes of tables are not known yet" in told.err
    assert main(TRAIN) == 0
    capsys.readouterr()
    assert main([*TRAIN, "--show-config"]) == 0
    assert "t_item" in capsys.readouterr().err


def dryrun(*arguments):
    with get_runner() as runner:
        request = runner.dryrun_component(arguments[0], list(arguments[1:]), "local_cwd", {}).request
    ((replica,),) = request.role_params.values()
    return replica.args


def test_torchx_launches_it_and_refuses_a_wrong_declaration(folder, capsys):
    given = ["--dataset", "table", "--declaration", "shop.py", "--output", "out"]
    program = ["prepare", "table", "--declaration", "shop.py", "--output", "out", "--bad-rows", "strict"]
    assert dryrun("mtl.prepare", *given)[-8:] == program
    assert "--dataset shop.py" in dryrun("mtl.train", "--dataset", "shop.py")[-1]
    Path("shop.py").write_text("1 / 0")
    for command in (
        ["mtl.prepare", *given],
        ["mtl.train", "--dataset", "shop.py"],
        ["mtl.compare", "--datasets", "shop.py"],
    ):
        with pytest.raises(SystemExit, match="2"):
            dryrun(*command)
        assert capsys.readouterr().err == "error: shop.py, line 1: division by zero (ZeroDivisionError)\n"


def test_an_engine_is_chosen_by_name(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyspark.sql", None)  # not installed
    for engine, sentence in {
        "sprak": "must be one of ['polars', 'spark']",
        "spark": "pip install 'torchrec_mtl[spark]'",
    }.items():
        assert main([*ENTRIES["prepare"], "--engine", engine]) == 2
        assert sentence in capsys.readouterr().err
    assert not Path("out").exists()
