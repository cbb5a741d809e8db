"""The step taken apart: what is given to which part, what is counted, and that a changed step is found out."""

import csv
import runpy
import sys
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from benchmarks import record
from benchmarks.scaling import measure as scaling
from benchmarks.training_step import case, clock, growth, parts
from benchmarks.training_step.case import Case, Size
from torchrec_mtl.training.process_group import process_group

CPU = torch.device("cpu")
SMALL = Size(batch_size=32, num_fields=3, fewest_rows=20, most_rows=40, num_tasks=2, num_inducing_points=4)


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(case, "DATA", tmp_path)


@pytest.fixture
def group(data):
    with process_group(CPU):
        yield


def test_a_moment_is_of_the_part_begun_last(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0])
    monkeypatch.setattr(time, "thread_time", lambda: next(now))
    of_step = clock.Clock(CPU)
    of_step.begin(clock.REST)  # at 0
    of_step.begin("loss")  # 1
    of_step.turn_to(clock.OVER_ARCH_BACKWARD)  # 3
    of_step.end()  # 6
    of_step.around("transfer", lambda: None)  # makes no mark
    of_step.end()  # 10
    taken = {part: seconds for part, seconds in of_step.take().items() if seconds}
    assert taken == {clock.REST: 1 + 4, "loss": 2, clock.OVER_ARCH_BACKWARD: 3}


def test_parts_add_up_and_the_residual_is_what_they_lack():
    of_step = {part: [1.0, 2.0] for part in clock.OF_STEP}
    measured = parts.Measured({clock.READER: [1.0, 1.0, 9.0], **of_step}, on_gpu=False)
    count = len(clock.OF_STEP)
    assert measured.sums() == [count + 1, 2 * count + 1]
    assert measured.residual([2 * s for s in measured.sums()]) == pytest.approx(50)
    assert replace(measured, on_gpu=True).sums() == [count, 2 * count]


@pytest.mark.parametrize("system", ["single_task", "escm2_dr", "tafe"])
def test_every_part_of_a_step_is_seen(system, group):
    run = Case(system, SMALL, CPU)
    measured, whole = parts.measure(run, CPU, repeats=3)
    assert len(whole) == 3
    for part in clock.OF_STEP:
        assert len(measured.parts[part]) == 3
        assert min(measured.parts[part]) > 0, part
    assert measured.parts[clock.READER]
    run.close()


ONE_TOWER = [clock.OVER_ARCH_FORWARD, clock.TABLES_FORWARD, clock.OVER_ARCH_FORWARD]
ONE_TOWER_BACK = [clock.OVER_ARCH_BACKWARD, clock.TABLES_BACKWARD]


@pytest.mark.parametrize(("system", "towers"), [("shared_bottom", 1), ("single_task", 2)])
def test_boundaries_are_where_the_parts_meet(system, towers, group):
    """Single-Task's towers have tables of their own: backward goes from one to the other and back."""
    run, of_step = Case(system, SMALL, CPU), clock.Clock(CPU)
    run.take_step()
    with parts.instruments(run, of_step):
        run.take_step()
    kinds = ("tables", "over-arch", "loss")
    seen = [part for part, _ in of_step.marks if part.startswith(kinds)]
    changes = [part for part, before in zip(seen, ["", *seen], strict=False) if part != before]
    forward = [*ONE_TOWER, *(towers - 1) * ONE_TOWER[1:]]
    # what makes one loss of the logits is the wrapper's, after the loss's own module
    assert changes == [*forward, "loss", clock.OVER_ARCH_FORWARD, "loss", *towers * ONE_TOWER_BACK]
    run.close()


def test_a_step_with_instruments_is_the_same_step_and_another_is_found_out(group, monkeypatch):
    plain, instrumented = (Case("bpcm", SMALL, CPU) for _ in range(2))  # it has dropout
    parts.check(plain, instrumented, CPU)

    @contextmanager
    def changed(run, _):
        for of_parameters in run.training.optimizer.param_groups:
            of_parameters["lr"] *= 1.01
        yield

    monkeypatch.setattr(parts, "instruments", changed)
    with pytest.raises(RuntimeError, match=r"bpcm: with instruments the loss of step \d is"):
        parts.check(plain, instrumented, CPU)


def test_counts_are_those_by_hand():
    """Shared-Bottom: 256-128 at the bottom, two towers of 64."""
    counted = growth.count("shared_bottom", SMALL)
    first, products = 48 * 256, 48 * 256 + 256 * 128 + 2 * (128 * 64 + 64)
    assert counted.flops == 32 * 3 * 2 * products
    assert counted.dense_parameters == products + 256 + 128 + 2 * (64 + 1)
    assert (counted.ids, counted.lookups, counted.labels) == (96, 96, 64)
    wider = growth.count("shared_bottom", replace(SMALL, num_fields=6)).growth(counted)
    assert wider["over-arch"] == pytest.approx((products + first) / products)
    assert wider["tables"] == 2


def test_single_tasks_tables_grow_with_the_tasks():
    base, more = (growth.count("single_task", replace(SMALL, num_tasks=tasks)) for tasks in (2, 4))
    grown = more.growth(base)
    assert (grown["tables"], grown["over-arch"], grown["optimizer"]) == (2, 2, 2)


def test_bpcms_attention_is_counted_as_quadratic_in_the_fields():
    """What eight fields more add grows with the fields there are."""
    flops = [growth.count("bpcm", replace(SMALL, num_fields=fields)).flops for fields in (8, 16, 24)]
    linear = flops[1] - flops[0]
    assert flops[2] - flops[1] > 1.01 * linear


def test_rows_of_tables_change_no_count():
    base = growth.count("tafe", SMALL)
    assert set(growth.count("tafe", growth.changes(SMALL, "tafe")["rows of tables x10"]).growth(base).values()) == {1}


def test_the_program_answers_its_questions(data, tmp_path, monkeypatch):
    file = tmp_path / "x.csv"
    block = {"bare": (1.0, 1.0), "ours": (1.02, 1.01)}
    runs = [{"loss_difference": 0.0, "blocks": [block, block]}]
    monkeypatch.setattr(scaling, "run", lambda *arguments, **options: runs)  # in processes of their own
    monkeypatch.setattr(record, "begin", lambda **options: dict.fromkeys(record.CIRCUMSTANCES, "x"))
    monkeypatch.setattr(sys, "argv", ["training_step", "--quick", "--results", str(file)])
    runpy.run_module("benchmarks.training_step", run_name="__main__")
    rows = list(csv.DictReader(file.open()))
    assert {row["question"] for row in rows} == {"parts", "growth", "figure 8", "overhead"}
    of_growth = {(row["model"], row["change"]) for row in rows if row["question"] == "growth"}
    assert ("tafe", "inducing points x2") in of_growth
    assert ("shared_bottom", "fields x2") in of_growth
    base = [row for row in rows if row["question"] == "figure 8" and row["model"] == "shared_bottom"]
    assert [float(row["median"]) for row in base] == [1, 1]
    overhead = [row["median"] for row in rows if row["question"] == "overhead" and row["unit"] == "%"]
    assert overhead == ["2.0", "1.0"] * 2
