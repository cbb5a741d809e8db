"""What is looked up: tables, and ids drawn for them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.modules.embedding_configs import DataType

from torchrec_mtl.data.ali_ccp.golden import NUM_EMBEDDINGS
from torchrec_mtl.errors import InputError

CRITEO = [45833188, 36746, 17245, 7413, 20243, 3, 7114, 1441, 62, 29275261, 1572176, 345138, 10, 2209, 11267, 128, 4]
CRITEO += [974, 14, 48937457, 11316796, 40094537, 452104, 12606, 104, 35]  # of the terabyte data set, as DLRM has it
CPU = torch.device("cpu")
TABLES = ("criteo", "ali_ccp", "synthetic")
DATA_TYPES = {"fp32": DataType.FP32, "fp16": DataType.FP16, "int8": DataType.FP32}  # int8 is quantised from fp32


@dataclass(frozen=True)
class Workload:
    """Tables, all of one width and of one feature each, and batches of bags that are all of one length.

    Args:
        tables: ``"criteo"``, 26 cardinalities; ``"ali_ccp"``, 18 vocabularies; or ``"synthetic"``.
        max_rows: of a table of the first two; larger ones are cut to it.
        num_tables: of the synthetic set.
        rows: of each of its tables.
        embedding_dim: D.
        batch_size: B, samples over all ranks.
        ids_a_bag: 1 for one-hot.
        exponent: of Zipf's law: the ``k``-th most frequent row is drawn ``k ** -exponent`` as often as the first. At 0
            all are as frequent.
        precision: ``"fp32"``, ``"fp16"`` or ``"int8"``, of table values.

    Raises:
        InputError: if tables or precision are unknown, or a size is less than 1.
    """

    tables: str = "criteo"
    max_rows: int = 100_000
    num_tables: int = 26
    rows: int = 50_000
    embedding_dim: int = 64
    batch_size: int = 8192
    ids_a_bag: int = 1
    exponent: float = 1.05
    precision: str = "fp32"

    def __post_init__(self) -> None:
        for name, choices in ("tables", TABLES), ("precision", tuple(DATA_TYPES)):
            if getattr(self, name) not in choices:
                raise InputError(f"`{name}` (={getattr(self, name)!r}) must be one of {list(choices)}")
        for name in ("max_rows", "num_tables", "rows", "embedding_dim", "batch_size", "ids_a_bag"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` (={getattr(self, name)}) must be at least 1")
        if self.exponent < 0:
            raise InputError(f"`exponent` (={self.exponent}) must be at least 0")
        if self.embedding_dim % 4:
            raise InputError(f"`embedding_dim` (={self.embedding_dim}) must be a multiple of 4, as fbgemm's rows are")

    @cached_property
    def table_rows(self) -> list[int]:
        """Of each table."""
        if self.tables == "synthetic":
            return [self.rows] * self.num_tables
        published = CRITEO if self.tables == "criteo" else list(NUM_EMBEDDINGS.values())
        return [min(rows, self.max_rows) for rows in published]

    def collection(self, init_fn: Callable[[Tensor], Tensor | None], device: torch.device) -> EmbeddingBagCollection:
        """The tables ``t0``, ``t1``..., of features ``f0``, ``f1``..."""
        tables = [
            EmbeddingBagConfig(
                name=f"t{t}",
                num_embeddings=rows,
                embedding_dim=self.embedding_dim,
                feature_names=[f"f{t}"],
                data_type=DATA_TYPES[self.precision],
                init_fn=init_fn,
            )
            for t, rows in enumerate(self.table_rows)
        ]
        return EmbeddingBagCollection(tables=tables, device=device)

    def batches(
        self, count: int, seed: int, rank: int = 0, world_size: int = 1, device: torch.device = CPU
    ) -> list["Batch"]:
        """``count`` batches of one rank, its part of what all draw alike; their gradient is the same.

        Raises:
            InputError: if the ranks cannot have parts of one size.
        """
        if self.batch_size % world_size:
            raise InputError(f"`batch_size` (={self.batch_size}) must be a multiple of the ranks (={world_size})")
        generator = torch.Generator().manual_seed(seed)
        own = self.batch_size // world_size
        of_tables = [
            draw_ids(rows, count * self.batch_size * self.ids_a_bag, self.exponent, generator)
            for rows in self.table_rows
        ]
        ids = torch.stack(of_tables).view(len(of_tables), count, self.batch_size, self.ids_a_bag)
        gradient = torch.randn(self.batch_size, len(of_tables), self.embedding_dim, generator=generator)
        part = slice(rank * own, (rank + 1) * own)
        of_rank = gradient[part].clone().to(device)
        return [Batch(ids[:, number, part].contiguous().to(device), of_rank) for number in range(count)]


def draw_ids(rows: int, count: int, exponent: float, generator: torch.Generator) -> Tensor:
    """``[count]`` rows after Zipf's law; which row is how frequent is drawn too, so that neighbours are unlike."""
    if exponent == 0:
        return torch.randint(rows, (count,), generator=generator)
    cumulated = torch.arange(1, rows + 1, dtype=torch.float64).pow(-exponent).cumsum(0)
    drawn = torch.rand(count, dtype=torch.float64, generator=generator) * cumulated[-1]
    ranked = torch.searchsorted(cumulated, drawn, right=True).clamp_(max=rows - 1)
    return torch.randperm(rows, generator=generator)[ranked]


@dataclass(frozen=True, eq=False)
class Batch:
    """What a step looks up and learns from.

    Args:
        ids: ``[F, B, L]``, rows of each table.
        gradient: ``[B, F, D]``, of what is pooled.
    """

    ids: Tensor
    gradient: Tensor

    @cached_property
    def sparse_features(self) -> KeyedJaggedTensor:
        """The same ids for TorchRec."""
        num_tables, batch_size, length = self.ids.shape
        lengths = torch.full((num_tables * batch_size,), length, device=self.ids.device)
        features = KeyedJaggedTensor(
            [f"f{t}" for t in range(num_tables)], self.ids.flatten(), lengths=lengths, stride=batch_size
        )
        features.offsets()  # it keeps them
        return features
