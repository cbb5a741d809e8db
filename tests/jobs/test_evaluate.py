"""`evaluate` on ranks that each have their rows alone."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tests import processes
from tests.metrics.funnel import TASKS, by_name, collect, funnel
from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs.evaluate import measure
from torchrec_mtl.jobs.scoring import Scored


def _rank(folder: Path) -> None:
    rank, rows = dist.get_rank(), {name: column.numpy() for name, column in funnel().items()}
    positions = np.arange(1000)
    own = positions[positions % 3 == 2 * rank]  # a third of the rows is on no rank
    scored = Scored(own, *(column[own] for column in rows.values()))
    found = [by_name(measure(scored, TASKS, rows=which)) for which in (None, np.arange(100, 900))]
    wrong = scored.logits.copy()
    wrong[5 if rank else 0, 1] = float("nan") if rank else 0
    with pytest.raises(InputError, match=r"^`logits` must be finite, but entry \[5, 1\] is nan$"):
        measure(replace(scored, logits=wrong), TASKS)
    torch.save(found, folder / f"{rank}.pt")


def test_rows_of_all_ranks_are_measured_and_a_wrong_one_is_refused_on_each(tmp_path: Path) -> None:
    processes.run(_rank, 2, tmp_path)
    there = torch.arange(1000) % 3 != 1
    for rank in range(2):
        whole, part = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        for found, first, end in (whole, 0, 1000), (part, 100, 900):
            kept = {name: column[first:end][there[first:end]] for name, column in funnel().items()}
            assert found == pytest.approx(by_name(collect(kept).compute()), rel=1e-12)
