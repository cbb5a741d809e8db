"""Many ranks in the threads of one process."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, TypeVar

import torch
from torch import Tensor

from torchrec_mtl.metrics.ranks import Ranks

T = TypeVar("T")


class Seat(Ranks):
    """One of the ranks; ``received`` has the rows of each exchange that came to it."""

    def __init__(self, rank: int, table: list[Any], barrier: Barrier) -> None:
        self.size, self.rank, self.received = len(table), rank, list[int]()
        self._table, self._barrier = table, barrier

    def _shown(self, value: Any) -> list[Any]:
        """What all ranks put on the table."""
        self._table[self.rank] = value
        self._barrier.wait(timeout=60)
        shown = list(self._table)
        self._barrier.wait(timeout=60)
        return shown

    def stack(self, values: Tensor) -> Tensor:
        shown = self._shown(values)
        assert {each.dtype for each in shown} == {values.dtype}  # they travel as bytes
        return torch.stack(shown)

    def sum(self, values: Tensor) -> Tensor:
        return self.stack(values).sum(0)

    def exchange(self, columns: Sequence[Tensor], owners: Tensor) -> list[Tensor]:
        shown = self._shown((columns, owners))
        for each, _ in shown:
            assert [column.dtype for column in each] == [column.dtype for column in columns]
        received = [torch.cat([each[i][to == self.rank] for each, to in shown]) for i in range(len(columns))]
        self.received.append(len(received[0]))
        return received


def on_seats(function: Callable[..., T], columns_of_ranks: Sequence[Sequence[Tensor]]) -> list[tuple[T, Seat]]:
    """Returns ``function(ranks, *columns)`` of every rank, each with its columns, and the ranks themselves."""
    size = len(columns_of_ranks)
    table, barrier = [None] * size, Barrier(size)
    seats = [Seat(rank, table, barrier) for rank in range(size)]

    def called(seat: Seat) -> T:
        try:
            return function(seat, *columns_of_ranks[seat.rank])
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as pool:
        return list(zip(pool.map(called, seats), seats, strict=True))
