"""The arithmetic of the benchmark of preparation, and its check."""

import csv
import os
import sys
from pathlib import Path

import pytest

from benchmarks import data_preparation, record
from benchmarks.data_preparation import measure, rows_of

FOUND = (1000, {"101": 5})
BASE = [(FOUND, 10.0, 8.0, 50.0), (FOUND, 30.0, 9.0, 70.0), (FOUND, 20.0, 6.0, 60.0)]
OURS = [(FOUND, 1.0, 2.0, 500.0), (FOUND, 2.0, 3.0, 700.0), (FOUND, 4.0, 1.0, 600.0)]


def test_figures_by_hand() -> None:
    speed, cpu, memory = rows_of("aitm", OURS, BASE, {"raw_megabytes": 3})
    assert (speed["unit"], speed["median"], speed["times_baseline"]) == ("rows/s", 500, 10)  # 10, 15, 5
    assert (cpu["unit"], cpu["median"], cpu["times_baseline"]) == ("us/row", 2000, 4)  # 4, 3, 6
    assert (memory["unit"], memory["median"], memory["repeats"]) == ("MiB", 600, 3)
    assert all("times_baseline" not in row for row in rows_of("full", OURS, BASE, {}))


@pytest.mark.parametrize("other", [(999, {"101": 5}), (1000, {"101": 6}), (1000, {})])
def test_programs_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, other: tuple) -> None:
    finds = dict.fromkeys(data_preparation.PROGRAMS, FOUND) | {"full": other}
    monkeypatch.setattr(data_preparation, "PROGRAMS", {name: name for name in finds})
    monkeypatch.setattr(record, "in_own_process", lambda _, name, __: ((finds[name], 1.0, 2.0), 3.0))
    assert measure(tmp_path, repeats=2)["aitm"] == [(FOUND, 1.0, 2.0, 3.0)] * 2
    finds["aitm"] = other
    with pytest.raises(SystemExit, match="error: they differ"):
        measure(tmp_path, repeats=2)


def test_quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    for name, value in record.worker_environment(1, processes=1).items():
        monkeypatch.setenv(name, value)  # as it is when the program does not start over
    monkeypatch.setattr(record, "in_own_process", lambda function, *arguments: (function(*arguments), 1.0))
    monkeypatch.setattr(sys, "argv", ["x", "--quick", "--results", str(tmp_path / "x.csv"), "--rows", "700", "900"])
    data_preparation.main()
    rows = list(csv.DictReader((tmp_path / "x.csv").open()))
    assert [row["program"] for row in rows[::3]] == ["baseline", "aitm", "full"] * 2
    with (record.RESULTS / "data_preparation.csv").open() as committed:
        assert set(rows[0]) == {*next(csv.reader(committed)), "command"}
