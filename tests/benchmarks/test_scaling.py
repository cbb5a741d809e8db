"""The figures that come of runs beside counts by hand; and the two stacks, which must train alike."""

from functools import partial

import pytest
import torch
import torch.distributed as dist

from benchmarks.scaling import Make, compare_losses, overheads, throughputs
from benchmarks.stacks import Bare, dlrm, library, ours
from tests import processes


def test_figures_of_runs():
    def run(*overheads: float) -> dict:
        blocks = [{"bare": (0.5, 1.0), "ours": (0.5 * (1 + o), 1 + 2 * o)} for o in overheads]
        return {"blocks": blocks, "loss_difference": overheads[0] / 10}

    runs = [run(0.1, 0.2, 0.3), run(0.0, 0.0, 0.1)]
    of_bare, of_ours = throughputs(runs, batch_size=100)
    assert (of_bare["median"], of_ours["median"], of_bare["repeats"]) == (200, 182, 6)
    wall, processor, added = overheads(runs)
    assert wall["median"] == 10
    assert (wall["lowest_run"], wall["highest_run"]) == (0, 20)
    assert processor["highest_run"] == 40
    assert added["median"] == 50
    assert wall["loss_difference"] == 0.01


def _both_train_alike(make: Make) -> None:
    subject = make(16, 50, dist.get_rank())
    bare, loop = Bare(subject), ours(subject, 32)
    bare.model.load_state_dict(loop.model.state_dict())
    assert compare_losses(bare, loop) < 2e-6
    with torch.no_grad():
        next(p for p in bare.model.parameters() if p.requires_grad).add_(0.01)
    with pytest.raises(RuntimeError, match="losses of step"):
        compare_losses(bare, loop)


SUBJECTS = [dlrm, partial(library, "shared_bottom"), partial(library, "tafe")]


@pytest.mark.parametrize("make", SUBJECTS, ids=["dlrm", "shared_bottom", "tafe"])
def test_both_stacks_train_alike(make: Make):
    processes.run(_both_train_alike, 2, make)
