"""The arithmetic of the benchmark of declared tables, and that pandas finds what `prepare_table` finds."""

import csv
import os
import sys
from pathlib import Path

import pytest

from benchmarks import record, table_preparation
from benchmarks.table_preparation import measure, rows_of

FOUND = (1000, {"user": 5}, 70)
RUNS = {
    "pandas": [(FOUND, 10.0, 8.0, 50.0), (FOUND, 30.0, 9.0, 70.0), (FOUND, 20.0, 6.0, 60.0)],
    "prepare_table": [(FOUND, 1.0, 2.0, 500.0), (FOUND, 2.0, 3.0, 700.0), (FOUND, 4.0, 1.0, 600.0)],
}


def test_figures_by_hand() -> None:
    speed, cpu, memory = rows_of("prepare_table", RUNS, {"fields": 12})
    assert (speed["unit"], speed["median"], speed["times_pandas"]) == ("rows/s", 500, 10)  # 10, 15, 5
    assert (cpu["unit"], cpu["median"], cpu["times_pandas"]) == ("us/row", 2000, 4)  # 4, 3, 6
    assert (memory["unit"], memory["median"], memory["repeats"]) == ("MiB", 600, 3)
    alone = rows_of("prepare_table", {"prepare_table": RUNS["prepare_table"]}, {})
    assert all("times_pandas" not in row for row in [*alone, *rows_of("pandas", RUNS, {})])


@pytest.mark.parametrize("other", [(999, {"user": 5}, 70), (1000, {"user": 6}, 70), (1000, {"user": 5}, 71)])
def test_programs_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, other: tuple) -> None:
    finds = dict.fromkeys(table_preparation.PROGRAMS, FOUND)
    monkeypatch.setattr(table_preparation, "PROGRAMS", {name: name for name in finds})
    monkeypatch.setattr(record, "in_own_process", lambda _, name, *__: ((finds[name], 1.0, 2.0), 3.0))
    assert measure(tmp_path, 2, list(finds))["pandas"] == [(FOUND, 1.0, 2.0, 3.0)] * 2
    finds["pandas"] = other
    with pytest.raises(SystemExit, match="error: they differ"):
        measure(tmp_path, 2, list(finds))


def test_quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    for name, value in record.worker_environment(1, processes=1).items():
        monkeypatch.setenv(name, value)  # as it is when the program does not start over
    monkeypatch.setattr(record, "in_own_process", lambda function, *arguments: (function(*arguments), 1.0))
    results = tmp_path / "x.csv"
    options = ["--quick", "--results", str(results), "--rows", "3000", "5000", "--alone", "5000"]
    monkeypatch.setattr(sys, "argv", ["x", *options])
    table_preparation.main()
    rows = list(csv.DictReader(results.open()))
    assert [row["program"] for row in rows[::3]] == ["pandas", "prepare_table", "prepare_table"]
    with (record.RESULTS / "table_preparation.csv").open() as committed:
        assert set(rows[0]) == set(next(csv.reader(committed)))
