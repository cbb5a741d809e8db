"""`benchmarks.gpu`, as far as it goes without a GPU: its time, its arguments, and that it says so."""

import runpy
import sys

import pytest

from benchmarks import gpu


def test_all_of_it_takes_nine_minutes_at_most():
    assert gpu.TESTS_SECONDS + sum(seconds for seconds, _ in gpu.PROGRAMS.values()) <= 9 * 60


@pytest.mark.parametrize("program", gpu.PROGRAMS)
def test_programs_know_the_options_they_are_given(program, monkeypatch, capsys):
    _, arguments = gpu.PROGRAMS[program]
    monkeypatch.setattr(sys, "argv", [program, *arguments, "--results", "x.csv", "--help"])
    with pytest.raises(SystemExit) as exit_status:
        runpy.run_module(f"benchmarks.{program}", run_name="__main__", alter_sys=True)
    assert not exit_status.value.code
    told = capsys.readouterr().out
    assert all(option in told for option in arguments if option.startswith("--"))


def test_one_that_is_too_slow_is_stopped_and_told(capfd):
    assert not gpu.run("sleeper", ("-c", "import time; time.sleep(60)"), 0.2)
    assert gpu.run("quick one", ("-c", "pass"), 60)
    told = capfd.readouterr().out
    assert "sleeper was stopped after" in told
    assert "quick one ran after" in told


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="error: there is no GPU here"):
        gpu.main()
