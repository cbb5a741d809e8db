"""Parallel runs: all are made, and what fails fails alone."""

import os
from functools import partial
from pathlib import Path

import pytest

from torchrec_mtl.errors import redacted, shown
from torchrec_mtl.jobs.compare.workers import make_all


def make(task: str, folder: Path) -> None:
    print(f"making {task}")
    if task == "raises":
        raise ValueError("no such thing")
    if task == "dies":
        os._exit(7)
    if task == "tells":
        raise ValueError(f"id (={shown(98765)})")
    (folder / task).write_text(str(os.getpid()))


def log_file(task: str, folder: Path) -> Path:
    return folder / "logs" / f"{task}.log"


def made(folder: Path, tasks: list[str], num_workers: int) -> dict[str, str | None]:
    functions = (partial(function, folder=folder) for function in (make, log_file))
    return dict(make_all(tasks, *functions, num_workers))


@pytest.mark.parametrize("num_workers", [1, 2, 8])
def test_a_failure_is_alone(tmp_path, num_workers):
    tasks = ["a", "raises", "b", "dies", "c", "d"]
    outcomes = made(tmp_path, tasks, num_workers)
    assert set(outcomes) == set(tasks)
    assert outcomes["raises"] == "ValueError: no such thing"
    assert outcomes["dies"] == "its process ended with exit code 7"
    for task in "abcd":
        assert outcomes[task] is None
        assert (tmp_path / task).is_file()
    assert "making b" in (tmp_path / "logs" / "b.log").read_text()
    assert "no such thing" in (tmp_path / "logs" / "raises.log").read_text()


def test_tasks_are_spread_over_processes(tmp_path):
    made(tmp_path, [str(i) for i in range(6)], num_workers=2)
    assert 1 <= len({file.read_text() for file in tmp_path.iterdir() if file.is_file()}) <= 2


def test_workers_leave_out_values_if_their_parent_does(tmp_path):
    for redact, value in ((False, "98765"), (True, "<redacted>")):
        with redacted(redact):
            assert made(tmp_path, ["tells"] * 2, num_workers=1) == {"tells": f"ValueError: id (={value})"}
        assert f"ValueError: id (={value})\n" in (tmp_path / "logs" / "tells.log").read_text()


def test_nothing_to_make(tmp_path):
    assert made(tmp_path, [], num_workers=2) == {}
