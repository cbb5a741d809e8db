"""What ranks send each other, in processes with gloo."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests import processes
from torchrec_mtl.metrics.ranks import Ranks

ROWS = torch.arange(8).view(4, 2), torch.tensor([True, False, True, True])
SPLITS = ((1, 3), (4, 0))  # rows of each rank
OWNERS = torch.tensor([1, 0, 1, 1])


def _rank(folder: Path) -> None:
    rank, ranks = dist.get_rank(), Ranks()
    gathered = [ranks.gather([column.split(split)[rank] for column in ROWS]) for split in SPLITS]
    alone = Ranks([dist.new_group([other]) for other in range(2)][rank])
    gathered.append(alone.gather(ROWS))
    columns = (ROWS[0], ROWS[1].double(), OWNERS)
    exchanged = [ranks.exchange(*_last([column.split(split)[rank] for column in columns])) for split in SPLITS]
    nothing = ranks.exchange([torch.empty(0)], torch.empty(0, dtype=torch.int64))
    kept = torch.tensor([rank])
    sums = ranks.sum(kept), alone.sum(kept), ranks.stack(kept), alone.stack(kept), kept
    torch.save((gathered, exchanged, nothing, sums), folder / f"{rank}.pt")


def _last(columns: list[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
    return columns[:-1], columns[-1]


def test_rows_are_gathered_in_rank_order_or_go_to_their_owners(tmp_path: Path) -> None:
    """Whether ranks have different numbers of rows, or none; a process group of one rank has its rows alone."""
    processes.run(_rank, 2, tmp_path)
    for rank in range(2):
        gathered, exchanged, nothing, sums = torch.load(tmp_path / f"{rank}.pt")
        for found, expected in (
            *((columns, ROWS) for columns in gathered),
            *((columns, (ROWS[0][rank == OWNERS], ROWS[1][rank == OWNERS].double())) for columns in exchanged),
        ):
            for column, wanted in zip(found, expected, strict=True):
                assert column.dtype == wanted.dtype
                assert torch.equal(column, wanted)  # and no padding
        assert [column.tolist() for column in nothing] == [[]]
        assert [each.tolist() for each in sums] == [[1], [rank], [[0], [1]], [[rank]], [rank]]


@pytest.mark.parametrize("rows", [4, 0])
def test_without_a_process_group_a_rank_is_alone(rows: int) -> None:
    ranks, columns = Ranks(), [column[:rows] for column in ROWS]
    assert ranks.size == 1
    assert all(torch.equal(*pair) for pair in zip(ranks.gather(columns), columns, strict=True))
