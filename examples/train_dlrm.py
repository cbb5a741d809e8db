"""TorchRec's way of training DLRM, and the lines that turn it into TAFE.

KeyedJaggedTensor batches, fused optimizer, sharding plan, DistributedModelParallel and train pipeline are TorchRec's
own and do not change; ``--model`` chooses which model is built.

    torchrun --nproc_per_node 2 examples/train_dlrm.py --model tafe
"""

import argparse
import os

import torch
import torch.distributed as dist
from random_funnel import NUM_DENSE, TASKS, batches, tables
from torchrec import EmbeddingBagCollection
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

from torchrec_mtl import MultiTaskTrain
from torchrec_mtl.losses import DependenceLoss
from torchrec_mtl.models import TAFE
from torchrec_mtl.modules import FeatureArch, advance_schedules


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=["dlrm", "tafe"], default="tafe")
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()

    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    dist.init_process_group("nccl" if cuda else "gloo")
    torch.manual_seed(0)

    ebc = EmbeddingBagCollection(tables=tables(embedding_dim=16), device=torch.device("meta"))
    if args.model == "dlrm":
        train_model = DLRMTrain(DLRM(ebc, NUM_DENSE, [32, 16], [32, len(TASKS)], dense_device=device))
    else:
        features = FeatureArch(ebc, dense_in_features=NUM_DENSE, dense_arch_layer_sizes=[32, 16], dense_device=device)
        train_model = MultiTaskTrain(TAFE(features, TASKS), DependenceLoss(TASKS))

    apply_optimizer_in_backward(RowWiseAdagrad, ebc.parameters(), {"lr": 0.05})
    # replicated tables would drop the optimizer that runs in the backward pass
    constraints = {t.name: ParameterConstraints(sharding_types=["table_wise"]) for t in ebc.embedding_bag_configs()}
    world_size = dist.get_world_size()
    topology = TopologyFactory.create_topology(
        TrainerConfig(world_size=world_size, local_world_size=int(os.environ["LOCAL_WORLD_SIZE"])),
        HardwareConfig(),
        KernelConfig(compute_device=device.type),
    )
    reservation = FixedPercentageStorageReservation(0.15)
    planner = EmbeddingShardingPlanner(topology=topology, constraints=constraints, storage_reservation=reservation)
    plan = planner.collective_plan(train_model, get_default_sharders(), dist.group.WORLD)
    model = DistributedModelParallel(train_model, device=device, plan=plan)

    dense = dict(in_backward_optimizer_filter(model.named_parameters()))
    dense_optimizer = KeyedOptimizerWrapper(dense, lambda params: torch.optim.Adam(params, lr=1e-3))
    optimizer = CombinedOptimizer([model.fused_optimizer, dense_optimizer])

    pipeline = TrainPipelineSparseDist(model, optimizer, device)
    iterator = batches(args.steps, batch_size=512, seed=dist.get_rank())
    for step in range(args.steps):
        loss, logits, _ = pipeline.progress(iterator)
        advance_schedules(model)  # makes TAFE's smooth step steeper
        if step % 20 == 0 and dist.get_rank() == 0:
            print(f"step {step:4d}  loss {loss.item():.4f}  logits {tuple(logits.shape)}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
