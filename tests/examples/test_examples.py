"""The examples run, and what they train gets better."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        [*TORCHRUN, "train_dlrm.py", "--model", "dlrm", "--steps", "60"],
        [*TORCHRUN, "train_dlrm.py", "--model", "tafe", "--steps", "60"],
        ["over_arch_in_own_model.py"],
        ["own_over_arch.py"],
    ],
    ids=lambda command: "-".join(part for part in command if part in ("dlrm", "tafe") or part.endswith(".py")),
)
def test_example_trains(command):
    done = subprocess.run(
        [sys.executable, *command], cwd=EXAMPLES, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    losses = [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", done.stdout)]
    assert losses[-1] < losses[0]


def test_every_example_is_run_here():
    programs = {path.name for path in EXAMPLES.glob("*.py")} - {"random_funnel.py"}
    assert programs == {"train_dlrm.py", "over_arch_in_own_model.py", "own_over_arch.py"}
