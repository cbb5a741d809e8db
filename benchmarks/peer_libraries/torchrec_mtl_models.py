"""torchrec_mtl: by default what its jobs do, tables stepped in the backward pass by row-wise Adagrad."""

from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from common import Candidate, Sizes, alike, batches
from torch import Tensor
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor

from torchrec_mtl.data import Field, MultiTaskBatch, Schema
from torchrec_mtl.jobs.registry import MODELS as ENTRIES
from torchrec_mtl.jobs.settings import RunConfig
from torchrec_mtl.jobs.train import build_model
from torchrec_mtl.modules import start_from_base_rates
from torchrec_mtl.tasks import TaskChain
from torchrec_mtl.training.config import TrainingConfig
from torchrec_mtl.training.distributed import distribute, process_group
from torchrec_mtl.training.step import Step

MODELS = ("shared_bottom", "mmoe", "ple", "esmm", "aitm")
CPU = torch.device("cpu")


def running() -> AbstractContextManager[None]:
    return process_group(CPU)


def model_args(name: str, sizes: Sizes) -> dict[str, object]:
    if name in ("esmm", "aitm"):
        return {"tower_layer_sizes": sizes.whole_tower_sizes}
    kind = "bottom_layer_sizes" if name == "shared_bottom" else "expert_layer_sizes"
    numbers = {
        "mmoe": {"num_experts": sizes.num_experts},
        "ple": {"num_layers": 2, **dict.fromkeys(("num_task_experts", "num_shared_experts"), sizes.num_experts // 2)},
    }
    return {kind: sizes.expert_sizes, "tower_layer_sizes": sizes.tower_sizes, **numbers.get(name, {})}


def batch(ids: Tensor, labels: Tensor, sizes: Sizes) -> MultiTaskBatch:
    ones = torch.ones(ids.numel(), dtype=torch.int64)
    sparse = KeyedJaggedTensor(list(sizes.fields), ids.T.flatten(), lengths=ones)
    return MultiTaskBatch(torch.empty(len(ids), 0), sparse, labels)


def make(name: str, setting: str, sizes: Sizes, seed: int, base_rates: Tensor) -> Candidate:
    schema = Schema("synthetic", [Field(*field) for field in sizes.fields.items()], TaskChain(sizes.tasks))
    if setting == "like for like":
        collection = EmbeddingBagCollection(tables=schema.embedding_configs(sizes.embedding_dim))
        model = ENTRIES[name].model(collection, schema.tasks, **model_args(name, sizes))

        def probabilities(ids: Tensor) -> Tensor:
            own = batch(ids, torch.empty(0), sizes)
            return model(own.dense_features, own.sparse_features).sigmoid()

        return alike(model, probabilities, sizes)
    return as_the_jobs_do(name, sizes, schema, seed, base_rates)


def as_the_jobs_do(name: str, sizes: Sizes, schema: Schema, seed: int, base_rates: Tensor) -> Candidate:
    """The defaults of `RunConfig`, through the jobs' own functions."""
    training = TrainingConfig(batch_size=sizes.batch_size, seed=seed)
    config = RunConfig(name, sizes.embedding_dim, model_args=model_args(name, sizes), training=training)
    built = build_model(config, schema, CPU)
    start_from_base_rates(built, base_rates)
    model, optimizer = distribute(built, training, CPU)
    step = Step(model, optimizer, dist.group.WORLD)

    def train(ids: Tensor, labels: Tensor) -> None:
        model.train()
        for some_ids, some_labels in batches(ids, labels, sizes.batch_size):
            step.zero_grad()  # from here, TorchRec's pipeline for the CPU
            loss, _ = step(batch(some_ids, some_labels, sizes))
            loss.backward()
            step.step()

    def predict(ids: Tensor) -> Tensor:
        _, (_, logits, _) = model(batch(ids, torch.zeros(len(ids), sizes.num_tasks), sizes))
        return logits.sigmoid()

    return Candidate(model, train, predict)
