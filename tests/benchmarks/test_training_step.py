"""The step taken apart: what is given to which part, what is counted, and that a changed step is found out."""

import csv
import runpy
import sys
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from benchmarks import record, scaling
from benchmarks.training_step import case, parts
from benchmarks.training_step.__main__ import changes, count
from benchmarks.training_step.case import Size, begin
from torchrec_mtl.jobs.environment import worker_environment
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
    now = iter([0.0, 1.0, 3.0, 6.0, 10.0])
    monkeypatch.setattr(time, "thread_time", lambda: next(now))
    clock, leaf = parts.Clock(CPU), torch.ones(1, requires_grad=True)
    loss = clock.around("loss", lambda x: (x * 2).sum().backward(), before_inputs=parts.OVER_ARCH_BACKWARD)
    clock.around(parts.REST, lambda: loss(leaf))()  # from 0; the loss from 1 to 6, its input's gradient comes at 3
    taken = {part: seconds for part, seconds in clock.take().items() if seconds}
    assert taken == {parts.REST: 1 + 4, "loss": 2, parts.OVER_ARCH_BACKWARD: 3}


@pytest.mark.parametrize(("device", "sums"), [("cpu", [10, 19]), ("cuda", [9, 18])])
def test_the_readers_time_is_added_where_it_is_not_beside(device, sums, group):
    apart = parts.Apart(begin("shared_bottom", SMALL, CPU), torch.device(device))
    apart.steps = [dict.fromkeys(parts.OF_STEP, seconds) for seconds in (7.0, 7.0, 1.0, 2.0)]  # the first two warm up
    apart.reader = [1.0, 1.0, 9.0]
    assert apart.sums() == sums


@pytest.mark.parametrize("system", ["single_task", "escm2_dr", "tafe"])
def test_every_part_of_a_step_is_seen(system, group):
    apart = parts.Apart(begin(system, SMALL, CPU), CPU)
    for _ in range(parts.WARM_UP + 3):
        apart.take()
    measured = apart.parts()
    for part in parts.OF_STEP:
        assert len(measured[part]) == 3
        assert min(measured[part]) > 0, part
    assert measured[parts.READER]


ONE_TOWER = [parts.OVER_ARCH_FORWARD, parts.TABLES_FORWARD, parts.OVER_ARCH_FORWARD]
ONE_TOWER_BACK = [parts.OVER_ARCH_BACKWARD, parts.TABLES_BACKWARD]


@pytest.mark.parametrize(("system", "towers"), [("shared_bottom", 1), ("single_task", 2)])
def test_boundaries_are_where_the_parts_meet(system, towers, group):
    """Single-Task's towers have tables of their own: backward goes from one to the other and back."""
    run, clock = begin(system, SMALL, CPU), parts.Clock(CPU)
    run.take_step()
    with parts.instruments(run, clock):
        run.take_step()
    kinds = ("tables", "over-arch", "loss")
    seen = [part for part, _ in clock.marks if part.startswith(kinds)]
    changes = [part for part, before in zip(seen, ["", *seen], strict=False) if part != before]
    forward = [*ONE_TOWER, *(towers - 1) * ONE_TOWER[1:]]
    # what makes one loss of the logits is the wrapper's, after the loss's own module
    assert changes == [*forward, "loss", parts.OVER_ARCH_FORWARD, "loss", *towers * ONE_TOWER_BACK]


def test_a_step_with_instruments_is_the_same_step_and_another_is_found_out(group, monkeypatch):
    plain, instrumented = (begin("bpcm", SMALL, CPU) for _ in range(2))  # it has dropout
    parts.check(plain, instrumented, CPU)

    @contextmanager
    def changed(run, _):
        for of_parameters in run.optimizer.param_groups:
            of_parameters["lr"] *= 1.01
        yield

    monkeypatch.setattr(parts, "instruments", changed)
    with pytest.raises(RuntimeError, match=r"with instruments the loss of step \d is"):
        parts.check(plain, instrumented, CPU)


def test_counts_are_those_by_hand():
    """Shared-Bottom: 256-128 at the bottom, two towers of 64."""
    counted, wider = (count("shared_bottom", replace(SMALL, num_fields=fields)) for fields in (3, 6))
    first, products = 48 * 256, 48 * 256 + 256 * 128 + 2 * (128 * 64 + 64)
    assert counted["over-arch"] == 32 * 3 * 2 * products
    assert counted["optimizer"] == products + 256 + 128 + 2 * (64 + 1)
    assert (counted["tables"], counted["loss"], counted["reader"]) == (96, 64, 96 + 64)
    assert wider["over-arch"] == 32 * 3 * 2 * (products + first)
    assert wider["tables"] == 2 * 96


def test_single_tasks_tables_grow_with_the_tasks():
    two, four = (count("single_task", replace(SMALL, num_tasks=tasks)) for tasks in (2, 4))
    assert all(four[part] == 2 * two[part] for part in ("tables", "over-arch", "optimizer"))


def test_bpcms_attention_is_counted_as_quadratic_in_the_fields():
    """What eight fields more add grows with the fields there are."""
    flops = [count("bpcm", replace(SMALL, num_fields=fields))["over-arch"] for fields in (8, 16, 24)]
    linear = flops[1] - flops[0]
    assert flops[2] - flops[1] > 1.01 * linear


def test_rows_of_tables_change_no_count():
    assert count("tafe", changes(SMALL, "tafe")["rows of tables x10"]) == count("tafe", SMALL)


def test_the_program_answers_its_questions(data, tmp_path, monkeypatch):
    file = tmp_path / "x.csv"
    block = {"bare": (1.0, 1.0), "ours": (1.02, 1.01)}
    runs = [{"loss_difference": 0.0, "blocks": [block, block]}]
    monkeypatch.setattr(scaling, "run", lambda *arguments, **options: runs)  # in processes of their own
    for name, value in worker_environment(1, processes=1).items():
        monkeypatch.setenv(name, value)  # else it would start itself over
    monkeypatch.setattr(sys, "argv", ["training_step", "--quick", "--results", str(file)])
    runpy.run_module("benchmarks.training_step", run_name="__main__")
    rows = list(csv.DictReader(file.open()))
    with (record.RESULTS / "training_step.csv").open() as recorded:
        known = next(csv.reader(recorded))
    assert [name for name in rows[0] if name in known] == known
    assert {row["question"] for row in rows} == {"parts", "growth", "figure 8", "overhead"}
    of_growth = {(row["model"], row["change"]) for row in rows if row["question"] == "growth"}
    assert ("tafe", "inducing points x2") in of_growth
    assert ("shared_bottom", "fields x2") in of_growth
    base = [row for row in rows if row["question"] == "figure 8" and row["model"] == "shared_bottom"]
    assert [float(row["median"]) for row in base] == [1, 1]
    overhead = [row["median"] for row in rows if row["question"] == "overhead" and row["unit"] == "%"]
    assert overhead == ["2.0", "1.0"] * 2
