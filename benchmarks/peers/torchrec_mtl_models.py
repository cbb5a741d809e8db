"""torchrec_mtl: by default what its jobs do, tables stepped in the backward pass by row-wise Adagrad."""

from contextlib import AbstractContextManager

import torch
import torch.distributed as dist
from common import ADAM, DEFAULT, LEARNING_RATE, TABLE_LEARNING_RATE, Candidate, Sizes, Start, alike, batches
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor

from torchrec_mtl import MultiTaskTrain
from torchrec_mtl.data import Field, MultiTaskBatch, Schema
from torchrec_mtl.jobs.build import build_model
from torchrec_mtl.jobs.run_config import RunConfig
from torchrec_mtl.losses import CrossEntropyLoss
from torchrec_mtl.systems import SYSTEMS
from torchrec_mtl.tasks import TaskChain
from torchrec_mtl.training.config import OptimizerConfig, TableConfig, TrainingConfig
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


def make(name: str, setting: str, sizes: Sizes, seed: int, base_rates: Tensor, start: Start) -> Candidate:
    schema = Schema("synthetic", [Field(*field) for field in sizes.fields.items()], TaskChain(sizes.tasks))
    if setting == DEFAULT:
        training = TrainingConfig(batch_size=sizes.batch_size, seed=seed)
        config = RunConfig(SYSTEMS[name], sizes.embedding_dim, model_args=model_args(name, sizes), training=training)
        built = build_model(config, schema, CPU)
        built.model.start_from_base_rates(base_rates)
        return distributed(built, training, sizes)
    collection = EmbeddingBagCollection(tables=schema.embedding_configs(sizes.embedding_dim))
    model = SYSTEMS[name].model(collection, schema.tasks, **model_args(name, sizes))
    if setting == ADAM:

        def probabilities(ids: Tensor) -> Tensor:
            own = batch(ids, torch.empty(0), sizes)
            return model(own.dense_features, own.sparse_features).sigmoid()

        return alike(model, probabilities, sizes, setting, start)
    start(model)
    values = {f"model.{name}": value.detach().clone() for name, value in model.state_dict().items()}
    adagrad = TableConfig(optimizer="adagrad", learning_rate=TABLE_LEARNING_RATE)
    adam = OptimizerConfig(learning_rate=LEARNING_RATE)
    training = TrainingConfig(batch_size=sizes.batch_size, seed=seed, table=adagrad, optimizer=adam)
    candidate = distributed(MultiTaskTrain(model, CrossEntropyLoss(schema.tasks)), training, sizes)
    put(values, candidate.module)
    return candidate


def distributed(built: nn.Module, training: TrainingConfig, sizes: Sizes) -> Candidate:
    """As the jobs train it: tables are stepped in the backward pass."""
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
        own = batch(ids, torch.empty(0), sizes)
        return model.module.model(own.dense_features, own.sparse_features).sigmoid()

    return Candidate(model, train, predict)


@torch.no_grad()
def put(values: dict[str, Tensor], model: nn.Module) -> None:
    """Into a distributed model of one process, whose tables are one shard each."""
    for name, place in model.state_dict().items():
        if isinstance(place, ShardedTensor):
            (shard,) = place.local_shards()
            place = shard.tensor
        place.copy_(values[name])
