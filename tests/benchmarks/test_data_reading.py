"""The arithmetic of the benchmark of readers, and its check."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import data_reading, record
from benchmarks.data_reading import TRAINING, check, rows_of
from torchrec_mtl.data import BatchLoader, Field, Schema, Split
from torchrec_mtl.tasks import TaskChain


def test_figures_by_hand() -> None:
    found = {TRAINING: [(10.0, 0.0), (20.0, 0.0), (40.0, 0.0)], "in order": [(90.0, 3.0), (80.0, 1.0), (200.0, 2.0)]}
    training, _, speed, memory = rows_of(found, {"data": "x"})
    assert (training["times_training"], training["data"]) == (1, "x")
    assert (speed["median"], speed["times_training"]) == (90, 5)  # 9, 4, 5
    assert (memory["median"], memory["p20"], memory["unit"]) == (2, 1, "MiB")


def test_a_reader_that_loses_a_row_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    schema = Schema("numbers", [Field("row", 3000)], TaskChain(["click"]))
    split = Split(schema, {"row": np.arange(3000)}, np.zeros((3000, 1)))
    loaders = {"in order": BatchLoader(split, 64), "windowed": BatchLoader(split, 64, True, shuffle_window=1000)}
    check(loaders, 3000)
    whole = BatchLoader.rows
    monkeypatch.setattr(BatchLoader, "rows", lambda loader: (rows[rows != 2500] for rows in whole(loader)))
    with pytest.raises(SystemExit, match="error: in order does not hand out every row once"):
        check(loaders, 3000)


def test_quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(data_reading, "FIELDS", (10,) * 6)  # three pairs interact
    monkeypatch.setattr(data_reading, "LIST_SIZES", {"small": 0, "lists": 9})
    for name, value in record.worker_environment(1, processes=1).items():
        monkeypatch.setenv(name, value)  # as it is when the program does not start over
    arguments = ["--quick", "--rows", "3000", "--data", str(tmp_path), "--results", str(tmp_path / "x.csv")]
    monkeypatch.setattr(sys, "argv", ["x", *arguments])
    data_reading.main()
    rows = list(csv.DictReader((tmp_path / "x.csv").open()))
    assert len(rows) == 2 * 11 * 2
    assert {row["data"] for row in rows} == {"small", "lists"}
    assert all(float(row["median"]) > 0 for row in rows if row["figure"] == "speed")
    with (record.RESULTS / "data_reading.csv").open() as committed:
        assert set(rows[0]) == {*next(csv.reader(committed)), "command"}
