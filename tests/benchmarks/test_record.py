"""The frame in which benchmarks time and record."""

import csv
import subprocess
import sys
import time

import numpy as np
import pytest

from benchmarks import memory, record

CIRCUMSTANCES = dict.fromkeys(record.CIRCUMSTANCES, "x")


def test_candidates_take_turns_and_warm_up_is_not_counted():
    order = []
    times = record.in_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=3, warm_up=2)
    assert order == ["a", "b"] * 5
    assert {name: len(own) for name, own in times.items()} == {"a": 3, "b": 3}


def test_a_ratio_is_of_the_same_round():
    assert record.ratio([2.0, 20.0, 6.0], [1.0, 10.0, 2.0]) == 2.0


@pytest.mark.parametrize("count", [1, 2, 7])
def test_quantiles_are_numpys(count):
    values = list(np.random.default_rng(count).normal(size=count))
    row = record.spread(values, "ms", digits=12)
    assert [row["p20"], row["median"], row["p80"]] == pytest.approx(np.quantile(values, [0.2, 0.5, 0.8]), abs=1e-11)
    assert (row["unit"], row["repeats"]) == ("ms", count)


def test_processor_time_leaves_waiting_out():
    assert record.seconds(lambda: time.sleep(0.05)) >= 0.05 > record.processor_seconds(lambda: time.sleep(0.05))


def test_every_row_ends_with_the_common_columns(tmp_path):
    file = tmp_path / "new" / "x.csv"
    rows = [{"a": 1, **record.spread([1.0], "ms")}, {"b": 2, **record.spread([2.0], "ms")}]
    record.write(file, rows, CIRCUMSTANCES)
    header, *lines = csv.reader(file.open())
    assert header == ["a", "b", *record.COLUMNS]
    assert [line[:2] for line in lines] == [["1", ""], ["", "2"]]


def test_a_process_of_its_own_tells_its_peak_memory():
    (length, small), (_, large) = (memory.in_own_process(np.ones, n) for n in (1, 10_000_000))
    assert length.shape == (1,)
    assert large - small == pytest.approx(10_000_000 * 8 / 2**20, rel=0.1)


def test_begin_starts_over_with_the_jobs_allocator_and_tells_what_a_row_needs():
    code = "from benchmarks import record; print(sorted(record.begin(threads=1, seed=3).items()))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=record.ROOT)
    found = dict(eval(run.stdout))
    assert sorted(found) == sorted(record.CIRCUMSTANCES)
    assert (found["seed"], found["threads"]) == (3, 1)
    assert "torch==" in found["versions"]
