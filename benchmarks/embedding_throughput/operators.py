"""The interface of all candidates, and the candidates of one process, which do without TorchRec's sharding."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from fbgemm_gpu import split_table_batched_embeddings_ops_training as fbgemm
from torch import Tensor, nn
from torch.nn.functional import embedding_bag
from torchrec.inference.modules import quantize_embeddings
from torchrec.optim.optimizers import PartialRowWiseAdam
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad
from torchrec.quant.embedding_modules import MODULE_ATTR_REGISTER_TBES_BOOL

from benchmarks.embedding_throughput.workload import ADAGRAD, DTYPES, Batch, Workload
from torchrec_mtl.training.touched_rows import TouchedRows

LEARNING_RATE, EPS, CACHED_SHARE = 0.05, 1e-8, 0.2  # share of a table in host memory
OPTIMIZERS: dict[str, tuple[Any, dict[str, float]]] = {
    ADAGRAD: (RowWiseAdagrad, {"lr": LEARNING_RATE, "eps": EPS}),
    "Adagrad": (torch.optim.Adagrad, {"lr": LEARNING_RATE, "eps": EPS}),
    "Adam": (torch.optim.Adam, {"lr": LEARNING_RATE, "eps": EPS}),
    "row-wise Adam": (PartialRowWiseAdam, {"lr": LEARNING_RATE, "eps": EPS}),
    **dict.fromkeys(("SGD", ""), (torch.optim.SGD, {"lr": LEARNING_RATE})),
}
KINDS = {  # fbgemm's names
    ADAGRAD: fbgemm.OptimType.EXACT_ROWWISE_ADAGRAD,
    "Adagrad": fbgemm.OptimType.EXACT_ADAGRAD,
    "Adam": fbgemm.OptimType.ADAM,
    "row-wise Adam": fbgemm.OptimType.PARTIAL_ROWWISE_ADAM,
    **dict.fromkeys(("SGD", ""), fbgemm.OptimType.EXACT_SGD),
}
Shard = tuple[int, Any, Tensor]  # table, index of the shard in it, values


class Candidate:
    """One way to look up and update tables."""

    forward: Callable[[Batch], Tensor]  # [B, F * D]
    order: Any = slice(None)  # order of the features in it
    tables: Sequence[Tensor] = ()
    optimizer: Any = None  # updates the tables after the backward pass, unless that does
    gradient: tuple[Tensor | None, Any] = (None, None)  # a batch's, as given and in that order

    def train(self, batch: Batch) -> None:
        """Forward, backward with the batch's gradient, update."""
        pooled = self.forward(batch)
        if self.gradient[0] is not batch.gradient:
            self.gradient = (batch.gradient, batch.gradient[:, self.order].flatten(1))
        pooled.backward(self.gradient[1])
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()

    def shards(self) -> Iterator[Shard]:
        """The parts of the tables that this rank holds."""
        return ((t, ..., table) for t, table in enumerate(self.tables))

    @torch.no_grad()
    def fill(self, values: Sequence[Tensor] | None = None) -> "Candidate":
        """Sets the tables to ``values``, or to a constant: memory never written to would be one page of zeros."""
        for t, index, shard in self.shards():
            shard.copy_(torch.tensor(0.01) if values is None else values[t][index])
        return self


class Bags(Candidate):
    """`nn.EmbeddingBag`, one per table. SGD takes sparse gradients; TorchRec's row-wise Adagrad only dense ones."""

    def __init__(self, workload: Workload, optimizer: str, device: torch.device) -> None:
        options = {"mode": "sum", "sparse": optimizer != ADAGRAD, "dtype": DTYPES[workload.precision], "device": device}
        self.bags = [nn.EmbeddingBag(rows, workload.embedding_dim, **options) for rows in workload.table_rows]
        self.tables = [bag.weight.detach() for bag in self.bags]
        kind, settings = OPTIMIZERS[optimizer]
        self.optimizer = kind([bag.weight for bag in self.bags], **settings)

    def forward(self, batch: Batch) -> Tensor:
        return torch.cat([bag(ids) for bag, ids in zip(self.bags, batch.ids, strict=True)], 1)


class Stacked(Candidate):
    """All tables in one, and the distinct rows updated by hand, without autograd: what a few lines of PyTorch reach."""

    def __init__(self, workload: Workload, optimizer: str, device: torch.device) -> None:
        rows, dtype = torch.tensor(workload.table_rows), DTYPES[workload.precision]
        self.firsts = (rows.cumsum(0) - rows).to(device)[:, None, None]
        self.weight = torch.empty(int(rows.sum()), workload.embedding_dim, dtype=dtype, device=device)
        self.state = torch.zeros(len(self.weight), device=device) if optimizer == ADAGRAD else None
        self.tables = self.weight.split(workload.table_rows)

    def _look_up(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Rows of the one table ``[B * F, L]``, and what they pool ``[B * F, D]``."""
        ids = (batch.ids + self.firsts).transpose(0, 1).reshape(-1, batch.ids.shape[2])
        return ids, embedding_bag(ids, self.weight, mode="sum")

    def forward(self, batch: Batch) -> Tensor:
        return self._look_up(batch)[1].view(batch.ids.shape[1], -1)

    def train(self, batch: Batch) -> None:
        ids, _ = self._look_up(batch)
        gradient = batch.gradient.view(len(ids), -1)
        if ids.shape[1] > 1:
            gradient = gradient.repeat_interleave(ids.shape[1], 0)
        if self.state is None:
            self.weight.index_add_(0, ids.flatten(), gradient, alpha=-LEARNING_RATE)
            return
        rows, positions = ids.unique(return_inverse=True)
        summed = gradient.new_zeros(len(rows), gradient.shape[1]).index_add_(0, positions.flatten(), gradient)
        state = self.state[rows] + summed.square().mean(1)
        self.state[rows] = state
        self.weight.index_add_(0, rows, summed * (-LEARNING_RATE / (state.sqrt() + EPS))[:, None])


class TableBatched(Candidate):
    """fbgemm's operator (TBE) and its fused optimizer; ``cached`` puts tables in host memory, a share on the GPU."""

    module: Any = fbgemm.SplitTableBatchedEmbeddingBagsCodegen

    def __init__(self, workload: Workload, optimizer: str, device: torch.device, cached: bool = False) -> None:
        at, on = fbgemm.EmbeddingLocation, fbgemm.ComputeDevice
        on_gpu = (at.MANAGED_CACHING if cached else at.DEVICE, on.CUDA)
        place = on_gpu if device.type == "cuda" else (at.HOST, on.CPU)
        options: Any = {"optimizer": KINDS[optimizer], "learning_rate": LEARNING_RATE, "eps": EPS, "device": device}
        options |= {"weights_precision": fbgemm.SparseType.from_dtype(DTYPES[workload.precision])}
        options |= {"stochastic_rounding": False}
        tables = [(rows, workload.embedding_dim, *place) for rows in workload.table_rows]
        self.tbe = self.module(tables, cache_load_factor=CACHED_SHARE, **options)

    def forward(self, batch: Batch) -> Tensor:
        return self.tbe(batch.sparse_features.values(), batch.sparse_features.offsets())

    def shards(self) -> Iterator[Shard]:
        self.tbe.flush()  # cached rows, to the tables
        return ((t, ..., table) for t, table in enumerate(self.tbe.split_embedding_weights()))


class OurKernels(TableBatched):
    """The same with the kernels of this library."""

    module = TouchedRows


class Quantised(Candidate):
    """int8 tables for inference: TorchRec's quantised collection, or only the operator (TBE) in it."""

    def __init__(self, workload: Workload, _: str, device: torch.device, operator_alone: bool = False) -> None:
        self.collection: Any = workload.collection(device)
        self.tables = [bag.weight.detach() for bag in self.collection.embedding_bags.values()]
        self.operator_alone = operator_alone

    def fill(self, values: Sequence[Tensor] | None = None) -> Candidate:
        super().fill(values)
        self.tables = ()
        setattr(self.collection, MODULE_ATTR_REGISTER_TBES_BOOL, True)
        module = nn.ModuleDict({"collection": self.collection})
        self.collection = quantize_embeddings(module, torch.qint8, inplace=True, output_dtype=torch.float)["collection"]
        self.operator = next(iter(self.collection.tbes))
        return self

    def forward(self, batch: Batch) -> Tensor:
        if not self.operator_alone:
            return self.collection(batch.sparse_features).values()
        return self.operator(batch.sparse_features.values().int(), batch.sparse_features.offsets().int())
