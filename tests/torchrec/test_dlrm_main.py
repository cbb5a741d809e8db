"""A program in the shape of TorchRec's DLRM scripts trains, evaluates and saves every model as it does DLRM."""

from pathlib import Path

import pytest

from tests import processes
from tests.torchrec.sparse_nn import CONTROL, NAMES

PROGRAM = Path(__file__).with_name("dlrm_main.py")


def aucs(output: str) -> dict[str, list[float]]:
    """What the program printed, by model."""
    rows = [line.split() for line in output.splitlines()]
    return {row[0]: [float(x) for x in row[1:]] for row in rows if row and row[0] in NAMES}


@pytest.mark.verify
@pytest.mark.slow
def test_every_model_learns_on_two_ranks_and_goes_on_on_one(tmp_path):
    trained = aucs(processes.run_program(PROGRAM, "--folder", str(tmp_path), "--models", *NAMES, ranks=2))
    assert list(trained) == NAMES
    assert {name: auc for name, (auc, *_) in trained.items() if auc < 0.6} == {}
    arguments = ("--folder", str(tmp_path), "--models", *NAMES, "--epochs", "0")
    assert aucs(processes.run_program(PROGRAM, *arguments, ranks=1)) == trained


@pytest.mark.slow
def test_one_rank_trains(tmp_path):
    trained = aucs(processes.run_program(PROGRAM, "--folder", str(tmp_path), "--models", CONTROL, "tafe", ranks=1))
    assert {name: auc for name, (auc, *_) in trained.items() if auc < 0.6} == {}
    assert len(trained) == 2
