"""Ways to look up and to update tables: one interface over all of them.

A candidate pools the bags of a batch and, when it trains, applies the batch's gradient to its tables.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice, SplitTableBatchedEmbeddingBagsCodegen
from torch import Tensor, nn
from torch.nn.functional import embedding_bag
from torchrec.inference.modules import quantize_embeddings
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad
from torchrec.quant.embedding_modules import MODULE_ATTR_REGISTER_TBES_BOOL

from benchmarks.embedding_throughput.workload import Batch, Workload

LEARNING_RATE, EPS = 0.05, 1e-8
CACHED_SHARE = 0.2  # of a table in host memory, kept on the GPU
Shard = tuple[int, int, int, Tensor]  # table, first row, first column, values
Initializer = Callable[[Tensor], Tensor | None]


class Candidate(Protocol):
    """What is timed."""

    def forward(self, batch: Batch) -> Tensor:
        """``[B, F * D]``, in the candidate's own order of features."""

    def pooled(self, batch: Batch) -> Tensor:
        """``[B, F, D]``, in the tables' order."""

    def train(self, batch: Batch) -> None:
        """Forward, backward with the batch's gradient, update."""

    def shards(self) -> Iterator[Shard]:
        """What this rank has of the tables."""


class InTableOrder:
    """What the candidates of one process share."""

    tables: list[Tensor]
    forward: Callable[[Batch], Tensor]

    def pooled(self, batch: Batch) -> Tensor:
        return self.forward(batch).float().view(batch.gradient.shape)

    def shards(self) -> Iterator[Shard]:
        return ((t, 0, 0, table) for t, table in enumerate(self.tables))


class Bags(InTableOrder):
    """`nn.EmbeddingBag`, one a table. SGD takes sparse gradients; TorchRec's row-wise Adagrad only dense ones."""

    def __init__(self, workload: Workload, optimizer: str, device: torch.device, init_fn: Initializer) -> None:
        dtype = torch.half if workload.precision == "fp16" else torch.float
        sparse, width = optimizer == "SGD", workload.embedding_dim
        options: dict[str, Any] = {"mode": "sum", "sparse": sparse, "device": device, "dtype": dtype}
        self.bags = [nn.EmbeddingBag(rows, width, **options) for rows in workload.table_rows]
        self.tables = [bag.weight.detach() for bag in self.bags]
        for table in self.tables:
            init_fn(table)
        weights = [bag.weight for bag in self.bags]
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(weights, LEARNING_RATE) if sparse else RowWiseAdagrad(weights, LEARNING_RATE, eps=EPS)
        )

    def forward(self, batch: Batch) -> Tensor:
        return torch.cat([bag(ids) for bag, ids in zip(self.bags, batch.ids, strict=True)], 1)

    def train(self, batch: Batch) -> None:
        pooled = self.forward(batch)
        pooled.backward(batch.gradient.view(pooled.shape).to(pooled.dtype))
        self.optimizer.step()
        self.optimizer.zero_grad()


class Stacked(InTableOrder):
    """All tables in one, and an update of the distinct rows by hand: what a few lines of PyTorch reach.

    The gradient is applied without autograd, as the backward pass of an operator of one's own would.
    """

    def __init__(self, workload: Workload, optimizer: str, device: torch.device, init_fn: Initializer) -> None:
        ends = torch.tensor(workload.table_rows).cumsum(0)
        self.firsts = (ends - torch.tensor(workload.table_rows)).to(device)
        dtype = torch.half if workload.precision == "fp16" else torch.float
        self.weight = torch.empty(int(ends[-1]), workload.embedding_dim, dtype=dtype, device=device)
        self.state = torch.zeros(len(self.weight), device=device) if optimizer == "row-wise Adagrad" else None
        self.tables = list(self.weight.split(workload.table_rows))
        for table in self.tables:
            init_fn(table)

    def _ids(self, batch: Batch) -> Tensor:
        """``[B * F, L]``"""
        return (batch.ids + self.firsts[:, None, None]).transpose(0, 1).reshape(-1, batch.ids.shape[2])

    def forward(self, batch: Batch) -> Tensor:
        return embedding_bag(self._ids(batch), self.weight, mode="sum").view(batch.ids.shape[1], -1)

    def train(self, batch: Batch) -> None:
        ids = self._ids(batch)
        embedding_bag(ids, self.weight, mode="sum")
        gradient = batch.gradient.view(len(ids), -1).to(self.weight.dtype)
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


class TableBatched(InTableOrder):
    """fbgemm's operator over all tables at once (TBE), with its fused optimizer, without TorchRec around it.

    Args:
        cached: tables in host memory, a share of them cached on the GPU (cached UVM).
    """

    def __init__(
        self, workload: Workload, optimizer: str, device: torch.device, init_fn: Initializer, cached: bool = False
    ) -> None:
        on_gpu = device.type == "cuda"
        location = EmbeddingLocation.MANAGED_CACHING if cached else EmbeddingLocation.DEVICE
        place = (location, ComputeDevice.CUDA) if on_gpu else (EmbeddingLocation.HOST, ComputeDevice.CPU)
        self.tbe = SplitTableBatchedEmbeddingBagsCodegen(
            [(rows, workload.embedding_dim, *place) for rows in workload.table_rows],
            optimizer=EmbOptimType.EXACT_SGD if optimizer == "SGD" else EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=LEARNING_RATE,
            eps=EPS,
            weights_precision=SparseType.FP16 if workload.precision == "fp16" else SparseType.FP32,
            output_dtype=SparseType.FP32,
            stochastic_rounding=False,
            cache_load_factor=CACHED_SHARE,
            device=device,
        )
        for table in self.tbe.split_embedding_weights():
            init_fn(table)

    @property
    def tables(self) -> list[Tensor]:
        self.tbe.flush()  # what is cached, to where the tables lie
        return self.tbe.split_embedding_weights()

    def forward(self, batch: Batch) -> Tensor:
        return self.tbe(batch.sparse_features.values(), batch.sparse_features.offsets())

    def train(self, batch: Batch) -> None:
        pooled = self.forward(batch)
        pooled.backward(batch.gradient.view(pooled.shape))


class Quantised(InTableOrder):
    """int8 tables for inference: TorchRec's quantised collection, or the operator in it (TBE) alone."""

    def __init__(self, workload: Workload, device: torch.device, init_fn: Initializer, operator_alone: bool) -> None:
        collection = workload.collection(nn.init.zeros_, device)
        for bag in collection.embedding_bags.values():
            init_fn(bag.weight.detach())
        setattr(collection, MODULE_ATTR_REGISTER_TBES_BOOL, True)
        module = nn.ModuleDict({"collection": collection})
        self.collection = quantize_embeddings(module, torch.qint8, inplace=True, output_dtype=torch.float)["collection"]
        self.operator = next(iter(self.collection.tbes)) if operator_alone else None

    def forward(self, batch: Batch) -> Tensor:
        if self.operator is None:
            return self.collection(batch.sparse_features).values()
        return self.operator(batch.sparse_features.values().int(), batch.sparse_features.offsets().int())

    def train(self, batch: Batch) -> None:
        raise NotImplementedError("int8 tables are for inference")

    def shards(self) -> Iterator[Shard]:
        return iter(())
