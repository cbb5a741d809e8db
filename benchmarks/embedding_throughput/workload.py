"""What is looked up: tables, ids drawn for them, and the bytes of the tables that a batch moves."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.modules.embedding_configs import dtype_to_data_type

from torchrec_mtl.datasets.ali_ccp.published import NUM_EMBEDDINGS
from torchrec_mtl.errors import InputError, check_at_least, check_choice

CRITEO = [45833188, 36746, 17245, 7413, 20243, 3, 7114, 1441, 62, 29275261, 1572176, 345138, 10, 2209, 11267, 128, 4]
CRITEO += [974, 14, 48937457, 11316796, 40094537, 452104, 12606, 104, 35]  # terabyte data set, as DLRM uses it
PUBLISHED = {"criteo": CRITEO, "ali_ccp": list(NUM_EMBEDDINGS.values())}
DTYPES = {"fp32": torch.float, "fp16": torch.half, "int8": torch.float}  # int8 tables are quantised from fp32
ADAGRAD = "row-wise Adagrad"
STATES = {  # of each optimizer: of each of them whether a row has one value, or one for each column
    ADAGRAD: ("row",),
    "SGD": (),
    "Adagrad": ("column",),
    "Adam": ("column", "column"),
    "row-wise Adam": ("column", "row"),
}
OFTEN = ("", ADAGRAD, "SGD")  # measured on every workload; the others on the base. "": does not train
CPU = torch.device("cpu")


@dataclass(frozen=True, eq=False)
class Batch:
    """What one step looks up and learns from."""

    ids: Tensor  # [F, B, L], rows of each table
    gradient: Tensor  # [B, F, D], of the pooled embeddings

    @cached_property
    def sparse_features(self) -> KeyedJaggedTensor:
        """The ids as TorchRec takes them."""
        keys, size = [f"f{t}" for t in range(len(self.ids))], self.ids.shape[1]
        lengths = torch.full((len(keys) * size,), self.ids.shape[2], device=self.ids.device)
        features = KeyedJaggedTensor(keys, self.ids.flatten(), lengths=lengths, stride=size)
        features.offsets()  # computed once and kept
        return features


@dataclass(frozen=True)
class Workload:
    """Tables of one width with a feature each, and batches of bags of one length. A wrong value is an `InputError`."""

    tables: str = "criteo"  # or "ali_ccp", "synthetic"
    max_rows: int = 100_000  # larger tables of Criteo and Ali-CCP are cut to it
    num_tables: int = 26  # synthetic tables
    rows: int = 50_000  # of each synthetic table
    embedding_dim: int = 64  # D
    batch_size: int = 8192  # B, over all ranks
    ids_a_bag: int = 1  # L
    exponent: float = 1.05  # of Zipf's law: the k-th row is drawn k ** -exponent times as often as the first
    precision: str = "fp32"  # of table values; or "fp16", "int8"

    def __post_init__(self) -> None:
        check_choice("tables", self.tables, (*PUBLISHED, "synthetic"))
        check_choice("precision", self.precision, list(DTYPES))
        check_at_least(1, **{field.name: getattr(self, field.name) for field in fields(self) if field.type is int})
        check_at_least(0, exponent=self.exponent)
        if self.embedding_dim % 4:
            raise InputError(f"`embedding_dim` (={self.embedding_dim}) must be a multiple of 4, as fbgemm's rows are")

    @cached_property
    def table_rows(self) -> list[int]:
        """Number of rows of each table."""
        if self.tables == "synthetic":
            return [self.rows] * self.num_tables
        return [min(rows, self.max_rows) for rows in PUBLISHED[self.tables]]

    def collection(self, device: torch.device) -> EmbeddingBagCollection:
        """The tables ``t0``, ``t1``..., of features ``f0``, ``f1``..."""
        data_type = dtype_to_data_type(DTYPES[self.precision])
        tables = [
            EmbeddingBagConfig(rows, self.embedding_dim, f"t{t}", data_type, [f"f{t}"], init_fn=nn.init.zeros_)
            for t, rows in enumerate(self.table_rows)
        ]
        return EmbeddingBagCollection(tables=tables, device=device)

    def batches(self, count: int, seed: int, rank: int = 0, ranks: int = 1, device: torch.device = CPU) -> list[Batch]:
        """One rank's part of ``count`` batches; every rank draws the same. All batches share one gradient."""
        generator, size = torch.Generator().manual_seed(seed), self.batch_size // ranks
        shape, part = (count, self.batch_size, self.ids_a_bag), slice(rank * size, (rank + 1) * size)
        ids = torch.stack([draw_ids(rows, shape, self.exponent, generator) for rows in self.table_rows])
        gradient = torch.randn(self.batch_size, len(ids), self.embedding_dim, generator=generator)[part].to(device)
        return [Batch(ids[:, number, part].contiguous().to(device), gradient) for number in range(count)]


def draw_ids(rows: int, shape: tuple[int, ...], exponent: float, generator: torch.Generator) -> Tensor:
    """Rows by Zipf's law, in ``shape``. Which row is how frequent is drawn too, so that neighbours differ."""
    cumulated = torch.arange(1, rows + 1, dtype=torch.float64).pow(-exponent).cumsum(0)
    drawn = torch.rand(shape, dtype=torch.float64, generator=generator) * cumulated[-1]
    ranked = torch.searchsorted(cumulated, drawn, right=True).clamp_(max=rows - 1)
    return torch.randperm(rows, generator=generator)[ranked]


def table_bytes(workload: Workload, batches: Sequence[Batch], optimizer: str) -> float:
    """Mean bytes of tables, optimizer states and gradients that a whole batch reads and writes.

    The forward pass, which is all if ``optimizer`` is empty, reads a row for each id. The update reads a row of the
    fp32 gradient for each id, and reads and writes each *distinct* row of a table, with its state, once.
    """
    width, count = workload.embedding_dim, batches[0].ids.numel()
    row = {"fp32": 4 * width, "fp16": 2 * width, "int8": width + 4}[workload.precision]  # int8: scale and offset
    if not optimizer:
        return count * row
    state = 4 * sum(1 if each == "row" else width for each in STATES[optimizer])
    distinct = sum(len(of_table.unique()) for batch in batches for of_table in batch.ids) / len(batches)
    return count * (row + 4 * width) + distinct * 2 * (row + state)
