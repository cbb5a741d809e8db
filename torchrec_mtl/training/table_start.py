"""Initial values of tables that do not depend on how they are sharded."""

import hashlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor

_BLOCK_ELEMENTS = 2**20


def _blocks(
    init_fn: Callable[[Tensor], object], key: str, shape: torch.Size, first: int, last: int
) -> Iterator[tuple[int, Tensor]]:
    """Blocks ``(first row, [rows, D])`` that cover rows ``first`` to ``last``, drawn each from a seed of its own."""
    num_rows, width = shape
    size = max(1, _BLOCK_ELEMENTS // width)
    for start in range(first // size * size, last, size):
        block = torch.empty(min(size, num_rows - start), width)
        digest = hashlib.sha256(f"{key}/{start}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:7], "big"))
        init_fn(block)
        yield start, block


@torch.no_grad()
def start_tables(model: nn.Module, init_fns: dict[str, Callable[[Tensor], object]], seed: int) -> None:
    """Draws every table anew, the same values on any number of ranks and under any sharding.

    A table is drawn in blocks of rows, each with a generator seeded by ``seed``, the table and the block; a rank draws
    the blocks that its shards touch.

    Args:
        model: sharded or not.
        init_fns: by a table's parameter name in ``model.state_dict()``, what fills ``[rows, D]`` on the CPU.
        seed: of all.
    """
    state = model.state_dict()
    with torch.random.fork_rng(devices=[]):
        for name, init_fn in init_fns.items():
            table = state[name]
            if isinstance(table, ShardedTensor):
                shape = table.metadata().size  # its own `shape` warns
                shards = [(shard.metadata.shard_offsets, shard.tensor) for shard in table.local_shards()]
            else:
                shape, shards = table.shape, [([0, 0], table)]
            for (row, column), values in shards:
                last = row + values.shape[0]
                for start, block in _blocks(init_fn, f"{seed}/{name}", shape, row, last):
                    lower, upper = max(row, start), min(last, start + len(block))
                    drawn = block[lower - start : upper - start, column : column + values.shape[1]]
                    values[lower - row : upper - row].copy_(drawn)
