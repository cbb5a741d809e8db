"""The frame in which benchmarks time and record."""

import csv
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import record
from torchrec_mtl.jobs.environment import worker_environment


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


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(autouse=True)
def started_as_results_want(monkeypatch):
    """Without these variables `Results` would start the tests over."""
    for name, value in worker_environment(1, processes=1).items():
        monkeypatch.setenv(name, value)


def test_rows_are_in_the_file_as_soon_as_they_are_added_and_take_its_name_at_the_end(tmp_path):
    file, partial = tmp_path / "new" / "x.csv", tmp_path / "new" / "x.csv.partial"
    with record.Results(file, seed=3) as results:
        results.add({"a": 1, **record.spread([1.0], "ms")})
        assert [row["a"] for row in rows_of(partial)] == ["1"]
        results.add({"b": 2, **record.spread([2.0], "ms")}, {"a": 3, **record.spread([3.0], "ms")})
        assert not file.exists()
    assert not partial.exists()
    rows = rows_of(file)
    assert [(row["a"], row["b"], row["median"]) for row in rows] == [
        ("1", "", "1.0"),
        ("", "2", "2.0"),
        ("3", "", "3.0"),
    ]
    assert list(rows[0]) == ["a", "b", *record.COLUMNS]
    assert all(row[name] for row in rows for name in record.CIRCUMSTANCES)
    assert (rows[0]["seed"], rows[0]["threads"]) == ("3", "1")
    assert "torch==" in rows[0]["versions"]


def test_an_exception_leaves_the_earlier_results_and_the_rows_until_then(tmp_path, capsys):
    file, partial = tmp_path / "x.csv", tmp_path / "x.csv.partial"
    with record.Results(file) as results:
        results.add({"a": "earlier", **record.spread([1.0], "ms")})
    with pytest.raises(KeyboardInterrupt), record.Results(file) as results:  # noqa: PT012
        results.add({"a": "later", **record.spread([2.0], "ms")})
        raise KeyboardInterrupt
    assert [row["a"] for row in rows_of(file)] == ["earlier"]
    assert [row["a"] for row in rows_of(partial)] == ["later"]
    assert f"not finished; 1 rows: {partial}" in capsys.readouterr().out


def test_a_program_that_is_ended_while_it_writes_a_row_keeps_it(tmp_path, monkeypatch):
    write = record.write_whole

    def interrupted(*arguments):
        monkeypatch.setattr(record, "write_whole", write)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), record.Results(tmp_path / "x.csv") as rows:  # noqa: PT012
        monkeypatch.setattr(record, "write_whole", interrupted)
        rows.add({"a": 1})
    assert [row["a"] for row in rows_of(tmp_path / "x.csv.partial")] == ["1"]


def test_what_a_row_says_of_its_circumstances_stays(tmp_path):
    with record.Results(tmp_path / "x.csv") as results:
        results.add({"a": 1, "versions": "other==1", **record.spread([1.0], "ms")})
    assert results.rows[0]["versions"] == "other==1"


def test_without_results_there_is_no_file(tmp_path):
    with record.Results(tmp_path / "x.csv"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_process_of_its_own_tells_its_peak_memory():
    (length, small), (_, large) = (record.in_own_process(np.ones, n) for n in (1, 10_000_000))
    assert length.shape == (1,)
    assert large - small == pytest.approx(10_000_000 * 8 / 2**20, rel=0.1)


def test_results_start_the_program_over_with_the_jobs_allocator(tmp_path):
    code = "import os, sys; from pathlib import Path; from benchmarks import record; print('began')\n"
    code += "record.Results(Path(sys.argv[1]) / 'x.csv'); print(os.environ['MALLOC_TRIM_THRESHOLD_'])"
    wanted = worker_environment(1, processes=1)
    environment = {name: value for name, value in os.environ.items() if name not in wanted}
    command = [sys.executable, "-u", "-c", code, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=record.ROOT, env=environment)
    assert run.stdout.split() == ["began", "began", wanted["MALLOC_TRIM_THRESHOLD_"]]
