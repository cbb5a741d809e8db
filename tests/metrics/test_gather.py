"""Rows gathered from all ranks."""

from pathlib import Path

import torch
import torch.distributed as dist

from tests import processes
from torchrec_mtl.metrics.gather import gather_rows

ROWS = torch.arange(8).view(4, 2), torch.tensor([True, False, True, True])
SPLITS = ((1, 3), (4, 0))  # rows of each rank


def _rank(folder: Path) -> None:
    rank = dist.get_rank()
    gathered = [gather_rows([column.split(split)[rank] for column in ROWS]) for split in SPLITS]
    alone = [dist.new_group([other]) for other in range(2)][rank]
    gathered.append(gather_rows(ROWS, alone))
    torch.save(gathered, folder / f"{rank}.pt")


def test_every_rank_gets_the_rows_of_all_in_rank_order(tmp_path: Path) -> None:
    """Even if ranks have different numbers of rows, or none; a rank in a group of one gets only its rows."""
    processes.run(_rank, 2, tmp_path)
    for rank in range(2):
        for gathered in torch.load(tmp_path / f"{rank}.pt"):
            for column, expected in zip(gathered, ROWS, strict=True):
                assert column.dtype == expected.dtype
                assert torch.equal(column, expected)  # and no padding
