"""How many bytes of the tables a batch moves, and how fast a plain copy moves bytes."""

from collections.abc import Callable, Iterable

import torch

from benchmarks.embedding_throughput.workload import Batch, Workload

STATE_BYTES = {"row-wise Adagrad": 4, "SGD": 0}  # of a row


def row_bytes(embedding_dim: int, precision: str) -> int:
    """Of one row of a table; a row of int8 has a scale and an offset of 16 bits each.

    Example::

        >>> row_bytes(64, "fp32"), row_bytes(64, "fp16"), row_bytes(64, "int8")
        (256, 128, 68)
    """
    return {"fp32": 4 * embedding_dim, "fp16": 2 * embedding_dim, "int8": embedding_dim + 4}[precision]


def table_bytes(workload: Workload, batches: Iterable[Batch], optimizer: str | None) -> float:
    """Mean over whole batches (those of all ranks) of what is read from and written to tables, states and gradients.

    Forward, each id reads its row. The update reads a row of the gradient, in fp32, for each id; and each *distinct*
    row of a table is read and written once, its state too.

    Args:
        workload: of which width the rows are.
        batches: of which ids.
        optimizer: None for the forward pass alone.
    """
    row, state = row_bytes(workload.embedding_dim, workload.precision), STATE_BYTES.get(optimizer or "", 0)
    moved = []
    for batch in batches:
        count = batch.ids.numel()
        moved.append(count * row)
        if optimizer is not None:
            distinct = sum(len(of_table.unique()) for of_table in batch.ids)
            moved[-1] += count * 4 * workload.embedding_dim + distinct * 2 * (row + state)
    return sum(moved) / len(moved)


def copied_bytes(mebibytes: int) -> int:
    """What copying a buffer of that size reads and writes."""
    return 2 * mebibytes * 2**20


def copying(mebibytes: int, device: torch.device) -> Callable[[], object]:
    """A copy of a buffer of that size to another."""
    source, target = (torch.ones(mebibytes * 2**18, device=device) for _ in range(2))
    return lambda: target.copy_(source)
