"""The examples run, and what they train gets better."""

import re
from pathlib import Path

import pytest

from tests import processes

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "arguments", "ranks"),
    [
        ("train_dlrm.py", ("--model", "dlrm", "--steps", "41"), 2),
        ("train_dlrm.py", ("--model", "tafe", "--steps", "41"), 2),
        ("over_arch_in_own_model.py", (), 0),
        ("own_over_arch.py", (), 0),
    ],
)
def test_example_trains(program, arguments, ranks):
    told = processes.run_program(EXAMPLES / program, *arguments, ranks=ranks)
    losses = [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", told)]
    assert losses[-1] < losses[0]


def test_every_example_is_run_here():
    programs = {path.name for path in EXAMPLES.glob("*.py")} - {"random_funnel.py"}
    assert programs == {"train_dlrm.py", "over_arch_in_own_model.py", "own_over_arch.py"}
