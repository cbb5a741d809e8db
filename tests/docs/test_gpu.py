"""docs/gpu.md: what it says of `benchmarks.gpu`."""

import csv
import re

from benchmarks import record
from benchmarks.gpu import __main__ as program
from benchmarks.gpu import figure_8
from benchmarks.gpu.embeddings import POINTS
from benchmarks.gpu.environment import KERNELS
from benchmarks.gpu.steps import STEPS

PAGE = (record.ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")


def test_the_table_is_the_steps():
    rows = re.findall(r"^\| (.+?) \| (\d+) \| (.+?) \|$", PAGE, re.M)
    assert rows == [(step.name, str(step.seconds), ", ".join(step.needs) or "torch") for step in STEPS]


def test_the_options_are_there_and_the_time_is_the_default(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gpu", "--help"])
    try:
        program.main()
    except SystemExit:
        shown = capsys.readouterr().out
    assert all(option in shown for option in re.findall(r"--[a-z]+", PAGE.partition("## Kernels compiled ahead")[0]))
    assert "280" in shown
    assert "It takes 280 seconds at most" in PAGE
    (enough,) = re.findall(r"`--seconds (\d+)` gives all of them time", PAGE)
    assert sum(step.seconds for step in STEPS) <= int(enough)


def test_numbers_and_names_are_those_of_the_steps():
    assert f"{figure_8.STEPS} steps to a round" in PAGE
    assert "at a batch of {:,} and of {:,}".format(*figure_8.BATCH_SIZES) in PAGE
    assert len(POINTS) == 5
    assert str(KERNELS.relative_to(record.ROOT)) in PAGE


def test_what_the_page_says_of_goals_and_errors_is_in_the_results():
    with (record.RESULTS / "gpu.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    wrong = [row for row in rows if row["error"]]
    assert len(wrong) == 4
    assert all(row["candidate"] == "compact" and row["dtype"] == "torch.bfloat16" for row in wrong)
    assert {row["processor"] for row in rows} == {"NVIDIA H200"}
    of_cuda = [row for row in rows if row["candidate"] == "cuda"]
    assert {row["timing"] for row in of_cuda} == {"mean of 30 calls in a row"}
    assert {row["size"] for row in of_cuda} == {"paper", "mid"}
    assert f"On the H200 it used all {rows[0]['kernels_ahead']}." in PAGE
