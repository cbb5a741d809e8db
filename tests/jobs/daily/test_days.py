"""Whole runs over days: progressive validation, warm state, bounds, interruptions."""

import csv
import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch

from tests import processes
from tests.jobs.daily import shop
from torchrec_mtl.__main__ import main
from torchrec_mtl.data import BatchLoader, Schema
from torchrec_mtl.data.split import Split
from torchrec_mtl.data.table import TableEncoder
from torchrec_mtl.jobs.daily.job import BEYOND_BOUNDS
from torchrec_mtl.jobs.loading import load_run
from torchrec_mtl.metrics import METRICS
from torchrec_mtl.training.checkpoint import best_checkpoint, read_manifest, verify
from torchrec_mtl.training.evaluation import evaluate
from torchrec_mtl.training.loop import TrainingLoop
from torchrec_mtl.training.process_group import process_group

MODEL = "shared_bottom"
SETTINGS = [
    "training.batch_size=64",
    "embedding_dim=8",
    "model_args.dropout=0.2",
    "training.optimizer.learning_rate=0.01",
]
SETTINGS += ["training.table.optimizer=rowwise_adagrad", "training.table.learning_rate=0.05"]
DAYS = ["2026-11-01", "2026-11-02", "2026-11-03"]
CPU = torch.device("cpu")


def arguments(
    table: Path, output: Path, *more: str, days: str = "2026-11-01..2026-11-03", name: str = "run"
) -> list[str]:
    options = ["--days", days, "--dataset", str(table), "--models", MODEL, "--output", str(output), "--name", name]
    return ["train", *options, *SETTINGS, *more]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return shop.write_days(tmp_path_factory.mktemp("shop"), 4)


@pytest.fixture(scope="module")
def whole(table, tmp_path_factory):
    """The folder of an uninterrupted run."""
    output = tmp_path_factory.mktemp("runs")
    assert main(arguments(table, output)) == 0
    return output / "run"


def weights(run: Path, day: str) -> dict[str, str]:
    """The tensors of a day's checkpoint: model, optimizer and random state."""
    checkpoint = best_checkpoint(run / "days" / day / MODEL / "checkpoints")
    return {name: each["sha256"] for name, each in verify(checkpoint)["files"].items() if name != ".metadata"}


def started_again(whole: Path, output: Path) -> Path:
    """A copy of the run of which only the first day is published."""
    run = output / "run"
    shutil.copytree(whole, run, symlinks=True)
    for day in DAYS[1:]:
        shutil.rmtree(run / "days" / day)
    (run / "days" / "newest").unlink()
    (run / "days" / "newest").symlink_to(DAYS[0])
    return run


def published(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "days").iterdir() if path.name[:1] == "2" and path.is_dir())


def rows(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()))


def test_every_day_is_published_and_the_last_is_the_newest(whole):
    assert sorted(path.name for path in (whole / "days").iterdir()) == [*DAYS, "newest"]
    assert os.readlink(whole / "days" / "newest") == DAYS[-1]
    for day in DAYS:
        names = sorted(path.name for path in (whole / "days" / day).iterdir())
        assert names == ["config.json", "data", "day.json", MODEL]
    assert (whole / "days.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("number", [1, 2])
def test_a_day_is_scored_by_the_published_model_of_the_day_before(whole, number):
    """Measured again from the files of the day before alone: its weights, its encoders, and the raw rows."""
    before = whole / "days" / DAYS[number - 1]
    schema = Schema.load(before / "data")
    raw = pl.concat([shop.rows_of(each) for each in range(number + 1)])
    encoder = TableEncoder.load(before / "data")
    raw = raw.with_columns(recent=pl.Series(histories(raw)))[400 * number :]
    encoded = encoder.encode(pa.RecordBatch.from_struct_array(raw.to_struct().to_arrow()))
    lists = encoded["recent"]
    offsets = [0, *lists.list.len().cum_sum()]
    fields = {name: encoded[name].to_numpy() for name in schema.field_names if name != "recent"}
    fields["recent"] = (lists.explode(empty_as_null=False).to_numpy(), np.array(offsets))
    dense = encoded.select(schema.dense).to_numpy()
    labels = raw.select("click", "buy").to_numpy().tolist()
    split = Split(schema, fields, labels=labels, dense=dense)
    with process_group(CPU):
        loaded = load_run(before)
        measured = evaluate(loaded.train_model, BatchLoader(split, 256), schema.tasks, CPU).compute()
    figures = {
        (row["task"], row["space"], row["metric"]): row["value"]
        for row in json.loads((whole / "days" / DAYS[number] / "day.json").read_text())["scored"]
    }
    for row in measured:
        assert figures[row["task"], row["space"], row["metric"]] == pytest.approx(row["value"], rel=1e-5), row
    of_events = {name for name, metric in METRICS.items() if metric.score in ("ranking", "probability")}
    assert {name for _, _, name in figures} >= of_events - {"auc"}


def histories(raw: pl.DataFrame) -> list[list[str]]:
    """The user's last three items within two days, before each row."""
    times = raw["ts"].str.to_datetime()
    listed = []
    for number, (user, time) in enumerate(zip(raw["user"], times, strict=True)):
        earlier = [
            raw["item"][at]
            for at in range(number)
            if raw["user"][at] == user and times[at] < time and (time - times[at]).total_seconds() <= 2 * 86_400
        ]
        listed.append(earlier[-3:])
    return listed


def test_the_state_stays_warm_and_new_ids_enter(whole):
    """The optimizer's step counts the steps of all days; rows of ids that no later day has stay as they were."""
    items = [TableEncoder.load(whole / "days" / day / "data").num_known("item") for day in DAYS]
    assert items == sorted({*items})
    assert len(items) == 3
    sizes = [Schema.load(whole / "days" / day / "data").embedding_configs(8)[1].num_embeddings for day in DAYS]
    assert len({*sizes}) == 1
    steps = [read_manifest(best_checkpoint(whole / "days" / day / MODEL / "checkpoints"))["step"] for day in DAYS]
    assert steps == [7, 7, 7]  # of each day
    import torch.distributed.checkpoint as dcp

    found = []
    for day in DAYS:
        checkpoint = best_checkpoint(whole / "days" / day / MODEL / "checkpoints")
        names = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
        step = next(name for name in names if name.startswith("optimizer.") and name.endswith(".step"))
        state = {step: torch.zeros(())}
        dcp.load(state, checkpoint_id=checkpoint, no_dist=True)
        found.append(float(state[step]))
    assert found == [7, 14, 21]


def test_tables_of_figures_and_drift_have_a_row_for_each(whole):
    figures = rows(whole / "days.csv")
    assert {row["day"] for row in figures} == set(DAYS[1:])  # the first day has no model before it
    assert {row["published"] for row in figures} == {"1"}
    of_day = {(r["task"], r["space"], r["metric"]) for r in figures if r["day"] == DAYS[1]}
    assert {
        ("buy", "impressions", "auc"),
        ("buy", "after click", "calibration"),
        ("click", "impressions", "normalized_entropy"),
    } <= of_day
    drift = {(row["day"], row["field"]): row for row in rows(whole / "drift.csv")}
    assert set(drift) == {(day, field) for day in DAYS for field in ("user", "item", "price", "age")}
    unknown = float(drift[DAYS[1], "item"]["unknown"])
    known = set(shop.rows_of(0)["item"])
    assert unknown == pytest.approx(sum(item not in known for item in shop.rows_of(1)["item"]) / 400)
    assert float(drift[DAYS[1], "price"]["missing"]) == pytest.approx(
        shop.rows_of(1)["price"].null_count() / 400, rel=1e-4
    )
    assert float(drift[DAYS[2], "price"]["stability"]) > 0.25 > float(drift[DAYS[2], "age"]["stability"])
    assert drift[DAYS[0], "price"]["stability"] == ""


def test_days_in_several_calls_are_the_days_in_one_bit_for_bit(table, whole, tmp_path, capsys):
    for day in DAYS:
        assert main(arguments(table, tmp_path, days=day)) == 0
    for day in DAYS:
        assert weights(tmp_path / "run", day) == weights(whole, day)
    for file in ("days.csv", "drift.csv"):
        assert (tmp_path / "run" / file).read_text() == (whole / file).read_text()
    capsys.readouterr()
    (
        tmp_path / "run" / "days.csv"
    ).unlink()  # as a job does not write it that is killed after it published the last day
    assert main(arguments(table, tmp_path)) == 0
    assert "nothing was left to do" in capsys.readouterr().out
    assert (tmp_path / "run" / "days.csv").read_text() == (whole / "days.csv").read_text()


def test_a_day_beyond_its_bounds_is_not_published(table, whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "run", symlinks=True)
    shutil.rmtree(tmp_path / "run" / "days" / DAYS[2])
    assert main(arguments(table, tmp_path, "--bounds", "least_auc.buy=0.999,least_auc=0.1")) == BEYOND_BOUNDS == 3
    told = capsys.readouterr().out
    assert f"{DAYS[2]} is not published: least_auc.buy=0.999 (it is 0." in told
    assert f"{DAYS[1]} stays the newest" in told
    assert published(tmp_path / "run") == DAYS[:2]
    assert os.readlink(tmp_path / "run" / "days" / "newest") == DAYS[1]
    refused = [row for row in rows(tmp_path / "run" / "days.csv") if row["day"] == DAYS[2]]
    assert {row["published"] for row in refused} == {"0"}
    assert main(arguments(table, tmp_path, "--bounds", "least_auc=0.1")) == 0  # other bounds publish it
    assert weights(tmp_path / "run", DAYS[2]) == weights(whole, DAYS[2])
    assert (tmp_path / "run" / "days.csv").read_text() == (whole / "days.csv").read_text()


def test_a_skipped_day_is_neither_scored_nor_trained_on(table, whole, tmp_path):
    started_again(whole, tmp_path)
    assert main(arguments(table, tmp_path, "--skip-days", DAYS[1])) == 0
    assert published(tmp_path / "run") == [DAYS[0], DAYS[2]]
    assert {row["day"] for row in rows(tmp_path / "run" / "days.csv")} == {DAYS[2]}


def _killed(argv: list[str], operation: str, part: str, times: int) -> None:
    """The job, killed before ``os.<operation>`` makes a path with ``part`` in its last two names for the n-th time."""
    original, left = getattr(os, operation), iter(range(times - 1, -1, -1))

    def until(source, target, **options):
        if part in "/".join(Path(target).parts[-2:]) and not next(left):
            os._exit(9)
        return original(source, target, **options)

    setattr(os, operation, until)
    torch.set_num_threads(1)
    os._exit(main(argv))


KILLS = [
    ("rename", "checkpoints/step_000000007", 1),
    ("replace", "/day.json", 1),
    ("rename", f"days/{DAYS[1]}", 1),
    ("replace", "days/newest", 2),  # at its beginning, a job names the newest day again
]


def test_a_run_that_is_killed_at_any_moment_ends_as_if_it_had_not_been(table, whole, tmp_path):
    run = started_again(whole, tmp_path)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(processes.PRELOADED)
    argv = arguments(table, tmp_path, days=f"{DAYS[0]}..{DAYS[1]}")
    for operation, part, times in KILLS:
        process = context.Process(target=_killed, args=(argv, operation, part, times))
        process.start()
        process.join()
        done = published(run)
        assert process.exitcode == 9
        assert done == DAYS[: 2 if part == "days/newest" else 1]
        newest = (run / "days" / "newest").resolve()
        assert newest.name in done
        assert weights(run, newest.name) == weights(whole, newest.name)
    assert main(arguments(table, tmp_path)) == 0
    for day in DAYS:
        assert weights(run, day) == weights(whole, day)
    assert (run / "days.csv").read_text() == (whole / "days.csv").read_text()
    assert sorted(path.name for path in (run / "days").iterdir()) == [*DAYS, "newest"]


def test_a_day_that_is_asked_to_stop_is_not_published(table, whole, tmp_path, capsys, monkeypatch):
    started_again(whole, tmp_path)
    take_step = TrainingLoop.take_step

    def stopped_in_the_third_step(loop):
        if loop.result.step == 2:
            signal.raise_signal(signal.SIGTERM)
        take_step(loop)

    monkeypatch.setattr(TrainingLoop, "take_step", stopped_in_the_third_step)
    assert main(arguments(table, tmp_path)) == 0
    assert (
        "asked to stop; 2026-11-02 is not published, and the same command begins with it again"
        in capsys.readouterr().out
    )
    assert published(tmp_path / "run") == DAYS[:1]
    monkeypatch.undo()
    assert main(arguments(table, tmp_path, days=DAYS[1])) == 0
    assert weights(tmp_path / "run", DAYS[1]) == weights(whole, DAYS[1])


def test_two_ranks_do_the_days_too(table, whole, tmp_path):
    """A day is scored by the same model, whatever the number of ranks that trained it or score now."""
    run = started_again(whole, tmp_path)
    processes.run_program("torchrec_mtl", *arguments(table, tmp_path, days=DAYS[1]), ranks=2)
    assert published(run) == DAYS[:2]
    assert main(arguments(table, tmp_path, days=DAYS[2])) == 0  # on one rank again
    assert (run / "drift.csv").read_text() == (whole / "drift.csv").read_text()
    for found, expected in zip(rows(run / "days.csv"), rows(whole / "days.csv"), strict=True):
        tolerance = 1e-5 if found["day"] == DAYS[1] else 0.1  # each rank draws its own dropout
        assert float(found.pop("value")) == pytest.approx(float(expected.pop("value")), abs=tolerance), expected
        assert found == expected


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--days", "2026-11-09"], "day 2026-11-09 must have rows (UTC, by column 'ts'), but has none"),
        (["--days", "soon"], "`days` (='soon') must be a day such as 2026-11-01, or 2026-11-01..2026-11-07"),
        (["training.batch_size=64", "training.micro_batches=3"], "`batch_size` (=64) must be a multiple of the number"),
        (["--reader", "stream"], "`reader` (='stream') must be 'auto' or 'mapped' with `days`"),
        (["--models", "tafe,bpcm"], "`models` (='tafe,bpcm') must name one model with `days`"),
        (["scene=item"], "`scene` (='item') must be empty with `days`: a day is measured as a whole"),
        (["--bounds", "auc=1"], "`bounds`: kind 'auc' must be one of"),
        (["--bounds", "least_auc.by=1"], "'by' must be one of"),
        (["--dataset", "nothing.py"], "nothing.py: no such file"),
    ],
)
def test_wrong_input_is_one_sentence(table, tmp_path, capsys, more, said):
    assert main([*arguments(table, tmp_path), *more]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error


def test_a_run_with_other_settings_or_another_declaration_is_refused(table, whole, tmp_path, capsys):
    output = whole.parent
    assert main(arguments(table, output, "training.batch_size=32")) == 2
    assert "the unfinished run was made with shared_bottom.training.batch_size=64, now 32" in capsys.readouterr().err
    other = tmp_path / "shop.py"
    other.write_text(table.read_text().replace('Bins("price", 8)', 'Bins("price", 9)'))
    assert main(arguments(other, output)) == 2
    assert ".data='every day of shop, declaration " in capsys.readouterr().err
    assert main(arguments(table, output, days="2026-11-05")) == 2
    assert "must begin at 2026-11-04, the day after the newest" in capsys.readouterr().err
