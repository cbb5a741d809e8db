"""The memory that tables can be placed in, and the bytes that they take."""

import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torchrec.modules.embedding_configs import DATA_TYPE_NUM_BITS, BaseEmbeddingConfig

from torchrec_mtl.errors import InputError

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))  # cgroup v2, v1
_STATES = {  # of each row and of each column of it
    "rowwise_adagrad": (1, 0),
    "adagrad": (0, 1),
    "sgd": (0, 0),
    "adam": (0, 2),
    "sparse_adam": (0, 2),
    "rowwise_adam": (1, 1),
}


def host_memory() -> int:
    """Bytes of memory of this machine, or of the container that this process is in."""
    sizes = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    texts = [file.read_text().strip() for file in _LIMITS if file.is_file()]
    return min(sizes + [int(text) for text in texts if text.isdigit()])


def device_memory(device: torch.device) -> int | None:
    """Bytes of memory of this rank's GPU; None without one."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    return int(torch.cuda.get_device_properties(device).total_memory)


def shard_bytes(table: BaseEmbeddingConfig, optimizer: str, rows: int, columns: int) -> int:
    """Bytes of so many rows and columns of a table, with their optimizer state, which is in fp32."""
    of_row, of_column = _STATES[optimizer]
    return rows * columns * DATA_TYPE_NUM_BITS[table.data_type] // 8 + 4 * rows * (of_row + of_column * columns)


def table_bytes(table: BaseEmbeddingConfig, optimizer: str) -> int:
    """Bytes of a table with its optimizer state.

    Example::

        >>> from torchrec import EmbeddingBagConfig
        >>> table_bytes(EmbeddingBagConfig(name="t", feature_names=["f"], num_embeddings=100, embedding_dim=8), "adam")
        9600
    """
    return shard_bytes(table, optimizer, table.num_embeddings, table.embedding_dim)


def check_memory(tables: Iterable[tuple[BaseEmbeddingConfig, str, bool]], of_rank: int, world_size: int) -> None:
    """Checks that the tables fit into the memory of the ranks, before anything is allocated.

    Args:
        tables: config, optimizer, and whether every rank holds all of it, for each table.
        of_rank: bytes of memory of a rank.
        world_size: number of ranks.

    Raises:
        InputError: if a table, or all of them together, need more; names the largest.
    """
    sizes = {table.name: (table_bytes(table, optimizer), whole, table) for table, optimizer, whole in tables}
    needed = sum(size * (world_size if whole else 1) for size, whole, _ in sizes.values())
    if needed > of_rank * world_size:
        size, whole, table = max(sizes.values(), key=lambda each: each[0])
        where = " on every rank" if whole else ""
        raise InputError(
            f"`num_embeddings` (={table.num_embeddings}) of {table.name} needs {size / 1e9:,.1f} GB with optimizer "
            f"state{where}, and all tables {needed / 1e9:,.1f} GB, but {world_size} x {of_rank / 1e9:,.1f} GB are there"
        )
