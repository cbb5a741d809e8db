"""A model with a terabyte of tables: 26 of power-law sizes, under PLE on a funnel of three steps."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.modules.embedding_configs import DataType
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from torchrec_mtl import MultiTaskTrain, TaskChain
from torchrec_mtl.data import MultiTaskBatch
from torchrec_mtl.losses import CrossEntropyLoss
from torchrec_mtl.models import PLE
from torchrec_mtl.modules import FeatureArch

TASKS = TaskChain(["click", "cart", "purchase"])


@dataclass(frozen=True)
class Workload:
    """What is trained.

    Args:
        table_bytes: of all tables in fp32.
        num_tables: one feature each.
        exponent: the ``k``-th largest table has ``k ** -exponent`` as many rows as the largest.
        embedding_dim: of all tables.
        ids_a_feature: mean length of a bag.
        num_dense: dense features.
        expert_layer_sizes: of PLE's experts, two for each task and two shared ones, in each of two layers.
        batch_size: rows a GPU and step.
    """

    table_bytes: float = 1e12
    num_tables: int = 26
    exponent: float = 1.5
    embedding_dim: int = 128
    ids_a_feature: float = 1.0
    num_dense: int = 13
    expert_layer_sizes: tuple[int, ...] = (1024, 512)
    batch_size: int = 4096

    def table_rows(self) -> list[int]:
        """Of each table, the largest first."""
        sizes = [k**-self.exponent for k in range(1, self.num_tables + 1)]
        rows = self.table_bytes / (4 * self.embedding_dim)
        return [max(1, round(rows * size / sum(sizes))) for size in sizes]

    def _model(self, table_rows: list[int], data_type: DataType, device: str) -> nn.Module:
        tables = [
            EmbeddingBagConfig(
                name=f"t{k}",
                embedding_dim=self.embedding_dim,
                num_embeddings=rows,
                feature_names=[f"f{k}"],
                data_type=data_type,
            )
            for k, rows in enumerate(table_rows)
        ]
        ebc = EmbeddingBagCollection(tables=tables, device=torch.device(device))
        dense = [512, self.embedding_dim]
        features = FeatureArch(ebc, dense_in_features=self.num_dense, dense_arch_layer_sizes=dense)
        ple = PLE(features, TASKS, expert_layer_sizes=list(self.expert_layer_sizes))
        return MultiTaskTrain(ple, CrossEntropyLoss(TASKS))

    def on_meta(self, data_type: DataType) -> nn.Module:
        """The model for the planner; its tables have no memory."""
        model = self._model(self.table_rows(), data_type, "meta")
        apply_optimizer_in_backward(
            RowWiseAdagrad, model.model.features.embedding_bag_collection.parameters(), {"lr": 0.05}
        )
        return model

    @cache  # noqa: B019  # a handful of workloads in a program's life
    def dense_cost(self) -> tuple[float, int]:
        """Of everything but tables: FLOPs of a row's forward and backward pass, counted as it runs; parameters."""
        model, rows = self._model([1] * self.num_tables, DataType.FP32, "cpu"), 8
        ids = torch.zeros(rows * self.num_tables, dtype=torch.long)
        keys = [f"f{k}" for k in range(self.num_tables)]
        sparse = KeyedJaggedTensor.from_lengths_sync(keys, ids, torch.ones(len(ids), dtype=torch.int32))
        batch = MultiTaskBatch(torch.zeros(rows, self.num_dense), sparse, torch.zeros(rows, len(TASKS)))
        with FlopCounterMode(display=False) as counter:
            model(batch)[0].backward()
        of_tables = {id(p) for p in model.model.features.embedding_bag_collection.parameters()}
        parameters = sum(p.numel() for p in model.parameters() if id(p) not in of_tables)
        return counter.get_total_flops() / rows, parameters
