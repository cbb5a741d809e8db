"""torchrec_mtl: by default trained as its jobs do, with row-wise Adagrad stepping tables in the backward pass.

Its ways to run a model: ``"sharded"``, as the jobs do, with fused optimizers on one rank's shards; the same with
autocast, ``"bf16"``; ``"replicated"``, as the jobs do with Adam on whole tables; and ``"plain"``, a module with torch's
optimizers, as the peers' models are.
"""

from dataclasses import replace
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor

from benchmarks.peers import common
from benchmarks.peers.common import Candidate, Workload
from torchrec_mtl import MultiTaskTrain
from torchrec_mtl.data import Field, MultiTaskBatch, Schema
from torchrec_mtl.jobs.build import build_model
from torchrec_mtl.jobs.run_config import RunConfig
from torchrec_mtl.losses import CrossEntropyLoss
from torchrec_mtl.systems import SYSTEMS
from torchrec_mtl.tasks import TaskChain
from torchrec_mtl.training.config import OptimizerConfig, TableConfig, TrainingConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.step import Step


def model_args(name: str, work: Workload) -> dict[str, object]:
    if name in ("esmm", "aitm"):
        return {"tower_layer_sizes": work.whole_tower_sizes}
    half, first = work.num_experts // 2, "bottom" if name == "shared_bottom" else "expert"
    args = {"tower_layer_sizes": work.tower_sizes, f"{first}_layer_sizes": work.expert_sizes}
    numbers = {
        "mmoe": {"num_experts": work.num_experts},
        "ple": {"num_layers": 2, "num_task_experts": half, "num_shared_experts": half},
    }
    return args | numbers.get(name, {})


def make(
    name: str, setting: str, work: Workload, seed: int, base_rates: Tensor, fill: bool, variant: str = "sharded"
) -> Candidate:
    schema = Schema("synthetic", [Field(*field) for field in work.fields.items()], TaskChain(work.tasks))
    args, training = model_args(name, work), TrainingConfig(batch_size=work.batch_size, seed=seed)
    if setting == common.DEFAULT:
        config = RunConfig(SYSTEMS[name], work.embedding_dim, model_args=args, training=training)
        built = build_model(config, schema, torch.device("cpu"))
        built.model.start_from_base_rates(base_rates)
        return distributed(built, training, work)
    device = torch.device("cpu" if variant == "plain" else "meta")  # the tables of jobs are made where they are sharded
    collection = EmbeddingBagCollection(tables=schema.embedding_configs(work.embedding_dim), device=device)
    model = SYSTEMS[name].model(collection, schema.tasks, **args)
    if variant == "plain":
        return common.alike(model, partial(probabilities, model, work), work, setting, fill)
    table = TableConfig(optimizer="adagrad", learning_rate=common.TABLE_LEARNING_RATE)
    if setting == common.ADAM:
        optimizer = "adam" if variant == "replicated" else "sparse_adam"
        table = TableConfig(optimizer=optimizer, learning_rate=common.LEARNING_RATE)
    training = replace(training, table=table, optimizer=OptimizerConfig(learning_rate=common.LEARNING_RATE))
    others = dict(model.over_arch.named_parameters())
    candidate = distributed(MultiTaskTrain(model, CrossEntropyLoss(schema.tasks)), training, work, variant == "bf16")
    state = {key.split(".")[-2]: value for key, value in candidate[0].state_dict().items() if ".embedding_bags." in key}
    tables = [state[config.name] for config in collection.embedding_bag_configs()]
    # one rank has one shard of each
    whole = [each.local_shards()[0].tensor if isinstance(each, ShardedTensor) else each for each in tables]
    common.draw(whole, others, fill)
    return candidate


def distributed(built: nn.Module, training: TrainingConfig, work: Workload, autocast: bool = False) -> Candidate:
    """Trains as the jobs do."""
    precision = partial(torch.autocast, "cpu", torch.bfloat16, enabled=autocast)
    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    model, optimizer = distribute(built, training, torch.device("cpu"))
    step = Step(model, optimizer, dist.group.WORLD)

    def train(ids: Tensor, labels: Tensor) -> None:
        model.train()
        for some_ids, some_labels in work.batches(ids, labels):
            step.zero_grad()  # from here, TorchRec's pipeline for the CPU
            with precision():
                loss, _ = step(MultiTaskBatch(*features(work, some_ids), some_labels))
            step.backward(loss)
            step.step()

    def predict(ids: Tensor) -> Tensor:
        with precision():
            return probabilities(model.module.model, work, ids)

    return model, train, predict


def probabilities(model: nn.Module, work: Workload, ids: Tensor) -> Tensor:
    return model(*features(work, ids)).float().sigmoid()


def features(work: Workload, ids: Tensor) -> tuple[Tensor, KeyedJaggedTensor]:
    lengths = torch.ones(ids.numel(), dtype=torch.int64)
    return torch.empty(len(ids), 0), KeyedJaggedTensor(list(work.fields), ids.T.flatten(), lengths=lengths)
