"""The arithmetic of the benchmark of new ids, its log, and a small run."""

import csv
import sys
from datetime import date, timedelta
from pathlib import Path

import polars as pl
import pytest

from benchmarks import every_day, record
from torchrec_mtl.data.table.drift import FieldCounts
from torchrec_mtl.jobs.daily.folder import DayReport


def test_a_share_of_the_ids_of_each_day_is_new(tmp_path: Path) -> None:
    every_day.write_log(tmp_path, seed=0, num_days=3, num_rows=20_000)
    for number in range(3):
        rows = pl.read_parquet(tmp_path / f"day_{number:02}.parquet")
        for name, num_ids in every_day.IDS.items():
            first = number * num_ids // 20
            assert rows[name].min() == first
            assert rows[name].max() == first + num_ids - 1 < every_day.num_ids_of_all_days(num_ids, 3)
        assert rows["ts"].dt.date().unique().to_list() == [every_day.FIRST + timedelta(days=number)]
        assert (rows["buy"] <= rows["click"]).all()


def test_figures_are_those_of_scored_days_and_their_means() -> None:
    def report(number: int, value: float) -> DayReport:
        rows = [("click", "impressions", "auc"), ("click", "impressions", "log_loss"), ("buy", "after click", "auc")]
        scored = [{"task": t, "space": s, "metric": m, "value": value} for t, s, m in rows]
        fields = {name: FieldCounts(10, 0, unknown, ()) for name, unknown in (("user", number), ("item", 3 * number))}
        return DayReport(date(2026, 11, number), 10, scored if number > 1 else [], fields)

    found = every_day.figures([report(1, 0.0), report(2, 0.5), report(3, 0.7)])
    assert found == {
        ("click", "auc", "2026-11-02"): 0.5,
        ("click", "auc", "2026-11-03"): 0.7,
        ("click", "auc", "all"): pytest.approx(0.6),
        ("", "unknown ids", "2026-11-02"): pytest.approx(0.4),
        ("", "unknown ids", "2026-11-03"): pytest.approx(0.6),
        ("", "unknown ids", "all"): pytest.approx(0.5),
    }
    (row,) = every_day.rows_of("way", [{("click", "auc", "all"): value} for value in (0.6, 0.7, 0.8)], {})
    assert (row["mean"], row["standard_deviation"], row["repeats"]) == (0.7, 0.1, 3)


def test_quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ways = ("fixed vocabulary", "zch, as many rows")
    monkeypatch.setattr(every_day, "WAYS", {name: every_day.WAYS[name] for name in ways})
    for name, value in record.worker_environment(1, processes=1).items():
        monkeypatch.setenv(name, value)  # as it is when the program does not start over
    monkeypatch.setattr(sys, "argv", ["x", "--quick", "--results", str(tmp_path / "x.csv")])
    every_day.main()
    rows = list(csv.DictReader((tmp_path / "x.csv").open()))
    assert len(rows) == 2 * 2 * (2 * 3 + 1)
    assert {row["day"] for row in rows} == {"2026-11-02", "all"}
    with (record.RESULTS / "every_day.csv").open() as committed:
        assert set(rows[0]) == {*next(csv.reader(committed))}
