"""Trains models one after the other as TorchRec's DLRM scripts train theirs, evaluates and saves each.

It is in the shape of ``dlrm_main.py`` and ``golden_training``, which do not know this library. What ``--models`` names
is DLRM or any system; only `build` and `advance_schedules` differ from what a DLRM needs.

    torchrun --nproc_per_node 2 tests/torchrec/dlrm_main.py --models dlrm tafe --folder checkpoints
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torchmetrics.classification import MultilabelAUROC
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.datasets.utils import Batch
from torchrec.distributed import DistributedModelParallel, TrainPipelineSparseDist
from torchrec.distributed.model_parallel import get_default_sharders
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import HardwareConfig, KernelConfig, TopologyFactory, TrainerConfig
from torchrec.models.dlrm import DLRM, DLRMTrain
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.keyed import CombinedOptimizer, KeyedOptimizerWrapper
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from torchrec_mtl import MultiTaskTrain, TaskChain
from torchrec_mtl.modules import FeatureArch, advance_schedules
from torchrec_mtl.systems import SYSTEMS

TASKS = TaskChain(["click", "cart", "purchase"])
FEATURES = {"user": 100, "item": 20, "category": 20}
NUM_DENSE, BATCH_SIZE = 4, 64


def batches(split: str, num_batches: int) -> Iterator[Batch]:
    """This rank's share of batches in which even items are bought more often; labels are integers, as DLRM's are."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    for i in range(rank, num_batches, world_size):
        generator = torch.Generator().manual_seed(2 * i + (split == "train"))
        ids = torch.stack([torch.randint(n, (BATCH_SIZE,), generator=generator) for n in FEATURES.values()])
        rate = torch.where(ids[1] % 2 == 0, 0.9, 0.3).unsqueeze(1)
        happened = torch.rand(BATCH_SIZE, len(TASKS), generator=generator) < rate
        sparse = KeyedJaggedTensor.from_lengths_sync(
            list(FEATURES), ids.flatten(), torch.ones(ids.numel(), dtype=torch.int32)
        )
        yield Batch(torch.randn(BATCH_SIZE, NUM_DENSE, generator=generator), sparse, happened.int().cumprod(1))


def build(name: str, collection: EmbeddingBagCollection, device: torch.device) -> nn.Module:
    if name == "dlrm":
        return DLRMTrain(DLRM(collection, NUM_DENSE, [16, 8], [16, len(TASKS)], device))
    system = SYSTEMS[name]
    features = FeatureArch(collection, dense_in_features=NUM_DENSE, dense_arch_layer_sizes=[16, 8], dense_device=device)
    small = {key: value for key, value in system.small.items() if key != "schedule"}
    model = system.model(features, TASKS, **{**small, **system.model_args})
    return MultiTaskTrain(model, system.loss(TASKS, **system.loss_args))


def shard(name: str, device: torch.device) -> tuple[DistributedModelParallel, CombinedOptimizer]:
    tables = [
        EmbeddingBagConfig(name=f"t_{k}", embedding_dim=8, num_embeddings=n, feature_names=[k])
        for k, n in FEATURES.items()
    ]
    collection = EmbeddingBagCollection(tables=tables, device=torch.device("meta"))
    train_model = build(name, collection, device)
    apply_optimizer_in_backward(RowWiseAdagrad, collection.parameters(), {"lr": 0.1})
    topology = TopologyFactory.create_topology(
        TrainerConfig(world_size=dist.get_world_size(), local_world_size=int(os.environ["LOCAL_WORLD_SIZE"])),
        HardwareConfig(),
        KernelConfig(compute_device=device.type),
    )
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=BATCH_SIZE,
        constraints={table.name: ParameterConstraints(sharding_types=["table_wise"]) for table in tables},
        storage_reservation=FixedPercentageStorageReservation(0.15),
    )
    plan = planner.collective_plan(train_model, get_default_sharders(), dist.group.WORLD)
    model = DistributedModelParallel(train_model, device=device, plan=plan)
    dense = KeyedOptimizerWrapper(
        dict(in_backward_optimizer_filter(model.named_parameters())), lambda params: torch.optim.Adam(params, lr=0.01)
    )
    return model, CombinedOptimizer([model.fused_optimizer, dense])


def train(pipeline: TrainPipelineSparseDist, model: nn.Module, num_batches: int) -> None:
    model.train()
    iterator = batches("train", num_batches)
    while True:
        try:
            pipeline.progress(iterator)
        except StopIteration:
            return
        advance_schedules(model)


def evaluate(pipeline: TrainPipelineSparseDist, model: nn.Module, num_batches: int) -> list[float]:
    """The AUC of each task over the rows of all ranks."""
    model.eval()
    iterator, auroc = batches("valid", num_batches), MultilabelAUROC(len(TASKS), average=None)
    with torch.no_grad():
        while True:
            try:
                _, logits, labels = pipeline.progress(iterator)
            except StopIteration:
                return auroc.compute().tolist()
            auroc.update(logits.sigmoid(), labels)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=1, help="0 evaluates what lies in the folder")
    args = parser.parse_args()
    dist.init_process_group("gloo")
    device = torch.device("cpu")
    for name in args.models:
        torch.manual_seed(0)
        model, optimizer = shard(name, device)
        pipeline = TrainPipelineSparseDist(model, optimizer, device, execute_all_batches=True)
        for _ in range(args.epochs):
            train(pipeline, model, num_batches=64)
            auc = evaluate(pipeline, model, num_batches=4)
        if not args.epochs:
            optimizer.init_state()  # or nothing would be loaded into it; an optimizer that has state would take a step
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        if args.epochs:
            dcp.save(state, checkpoint_id=args.folder / name)
        else:
            dcp.load(state, checkpoint_id=args.folder / name)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            auc = evaluate(pipeline, model, num_batches=4)
        if dist.get_rank() == 0:
            print(name, *(f"{x:.6f}" for x in auc), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
