"""`make bench-quick` runs all benchmarks, and is red when one of them is."""

import subprocess

import pytest

from benchmarks import quick, record


def test_it_runs_every_program_that_can_be_run_small():
    folder = record.ROOT / "benchmarks"
    programs = set()
    for file in folder.rglob("*.py"):
        if "record.parse(" in file.read_text(encoding="utf-8") and file.name != "record.py":
            programs.add(".".join(file.relative_to(folder).with_suffix("").parts).removesuffix(".__main__"))
    assert programs == {*quick.PROGRAMS, "service"}  # which installs Locust: `make verify` runs it


@pytest.mark.parametrize("status", [0, 1])
def test_the_last_words_of_a_program_that_fails_are_printed(monkeypatch, capsys, status):
    def run(command, **_):
        failed = command[-2].endswith(".peers")
        return subprocess.CompletedProcess(command, status if failed else 0, stdout="it said\nwhy")

    monkeypatch.setattr(subprocess, "run", run)
    if status:
        with pytest.raises(SystemExit, match=f"error: 1 of {len(quick.PROGRAMS)} benchmarks failed: peers"):
            quick.main()
    else:
        quick.main()
    assert ("    why" in capsys.readouterr().out) == bool(status)
