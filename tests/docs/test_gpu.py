"""docs/gpu.md: what it says of `benchmarks.gpu`."""

import re

from benchmarks import record
from benchmarks.gpu import __main__ as program
from benchmarks.gpu import figure_8
from benchmarks.gpu.embeddings import POINTS
from benchmarks.gpu.environment import KERNELS
from benchmarks.gpu.steps import STEPS

PAGE = (record.ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
SPEED = (record.ROOT / "docs" / "speed.md").read_text(encoding="utf-8")


def test_the_table_is_the_steps():
    rows = re.findall(r"^\| (.+?) \| (\d+) \| (.+?) \|$", PAGE, re.M)
    assert rows == [(step.name, str(step.seconds), ", ".join(step.needs) or "torch") for step in STEPS]


def test_the_options_are_there_and_the_time_is_the_default(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gpu", "--help"])
    try:
        program.main()
    except SystemExit:
        shown = capsys.readouterr().out
    assert all(option in shown for option in re.findall(r"--[a-z]+", PAGE))
    assert "280" in shown
    assert "It takes 280 seconds at most" in PAGE
    (enough,) = re.findall(r"`--seconds (\d+)` gives all of them time", PAGE)
    assert sum(step.seconds for step in STEPS) <= int(enough)


def test_numbers_and_names_are_those_of_the_steps():
    assert f"{figure_8.STEPS} steps to a round" in PAGE
    assert "at a batch of {:,} and of {:,}".format(*figure_8.BATCH_SIZES) in PAGE
    assert len(POINTS) == 5
    assert str(KERNELS.relative_to(record.ROOT)) in PAGE


def test_nothing_is_said_to_have_run_that_has_not():
    measured = (record.RESULTS / "gpu.csv").is_file()
    assert ("has not yet run on a GPU" in PAGE) is not measured
    assert ("not yet run on one" in SPEED) is not measured
