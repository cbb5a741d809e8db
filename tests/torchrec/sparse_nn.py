"""TorchRec's test helpers, and our models as the `TestSparseNN` that they take."""

import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.datasets.utils import Batch
from torchrec.distributed.fbgemm_qcomm_codec import QCommsConfig
from torchrec.distributed.planner import ParameterConstraints
from torchrec.distributed.test_utils.model_input import ModelInput
from torchrec.models.dlrm import DLRM, DLRMTrain

from tests.support import MODELS, TASKS
from torchrec_mtl import MultiTaskTrain
from torchrec_mtl.modules import FeatureArch

# TorchRec's wheel has these helpers, but not the module of which they import one class for another kind of collection.
left_out: Any = ModuleType("torchrec.distributed.tests.test_sequence_model")
left_out.TestEmbeddingCollectionSharder = None
sys.modules.setdefault("torchrec.distributed.tests", ModuleType("torchrec.distributed.tests"))
sys.modules.setdefault(left_out.__name__, left_out)

from torchrec.distributed.test_utils import test_model_parallel_base, test_sharding  # noqa: E402

CONTROL = "dlrm"
NAMES = [CONTROL, *MODELS]
WIDTH = 8
TABLES = [
    EmbeddingBagConfig(name=f"table_{i}", embedding_dim=WIDTH, num_embeddings=10 * (i + 1), feature_names=[f"f{i}"])
    for i in range(4)
]


class SparseNN(nn.Module):
    """A model with its loss, which maps a `ModelInput` to loss and logits in training, to logits in evaluation."""

    def __init__(
        self,
        name: str,
        tables: list[EmbeddingBagConfig],
        num_float_features: int,
        sparse_device: torch.device | None = None,
        dense_device: torch.device | None = None,
        arguments: dict[str, object] | None = None,
        **_: object,
    ) -> None:
        super().__init__()
        collection = EmbeddingBagCollection(tables=tables, device=sparse_device)
        if name == CONTROL:
            self.labels = 1
            self.train_model: nn.Module = DLRMTrain(
                DLRM(collection, num_float_features, [16, WIDTH], [16, 1], dense_device)
            )
        else:
            self.labels = len(TASKS)
            system = MODELS[name]
            features = FeatureArch(
                collection,
                dense_in_features=num_float_features,
                dense_arch_layer_sizes=(16, WIDTH),
                dense_device=dense_device,
            )
            without_dropout = {"message_dropout": 0.0} if name == "bpcm" else {}
            options = {**system.small, **system.model_args, **without_dropout, **(arguments or {})}
            self.train_model = MultiTaskTrain(
                system.model(features, TASKS, **options), system.loss(TASKS, **system.loss_args)
            )

    def forward(self, batch: ModelInput) -> Tensor | tuple[Tensor, Tensor]:
        thresholds = torch.arange(1, self.labels + 1) / (self.labels + 1)  # a label falls along the funnel
        labels = (batch.label.unsqueeze(1) > thresholds).float().squeeze(1)
        loss, (_, logits, _) = self.train_model(Batch(batch.float_features, batch.idlist_features, labels))
        return (loss, logits) if self.training else logits


def model_class(name: str, **arguments: object) -> Any:
    """What the helpers call to build a model."""
    return partial(SparseNN, name, arguments=arguments)


def check_sharded_step(
    build: Callable[..., nn.Module], sharding_type: str, seed: int = 0, quantised: QCommsConfig | None = None
) -> None:
    """TorchRec's check: after a step, the ranks predict together what one process with the whole batch predicts.

    ``build`` is called on ``meta`` for the sharded model, and without a ``sparse_device`` for the whole one.
    """
    kernel = "dense" if sharding_type == "data_parallel" else "fused"
    sharder = test_sharding.create_test_sharder(
        "embedding_bag_collection", sharding_type, kernel, qcomms_config=quantised, device=torch.device("cpu")
    )
    test_sharding.sharding_single_rank_test_single_process(
        pg=dist.group.WORLD,
        device=torch.device("cpu"),
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        model_class=build,
        embedding_groups={},
        tables=TABLES,
        sharders=[sharder],
        optim=EmbOptimType.EXACT_SGD,
        constraints={table.name: ParameterConstraints(min_partition=WIDTH // 2) for table in TABLES},
        random_seed=seed,
    )


__all__ = [
    "CONTROL",
    "NAMES",
    "TABLES",
    "check_sharded_step",
    "model_class",
    "test_model_parallel_base",
    "test_sharding",
]
