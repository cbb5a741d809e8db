"""torch-rechub: by default its own trainer, and batch normalisation in every MLP."""

import torch
from torch import Tensor, nn
from torch_rechub.basic.features import SparseFeature
from torch_rechub.basic.layers import MLP
from torch_rechub.models.multi_task import AITM, ESMM, MMOE, PLE, SharedBottom
from torch_rechub.trainers import MTLTrainer

from benchmarks.peers.common import DEFAULT, Candidate, Workload, alike


def build(name: str, work: Workload) -> nn.Module:
    features = [SparseFeature(field, vocab_size=n, embed_dim=work.embedding_dim) for field, n in work.fields.items()]
    num_tasks, num_experts = len(work.tasks), work.num_experts
    tasks, towers = ["classification"] * num_tasks, [{"dims": work.tower_sizes}] * num_tasks
    expert, whole_tower = {"dims": work.expert_sizes}, {"dims": work.whole_tower_sizes}
    if name == "shared_bottom":
        return SharedBottom(features, tasks, expert, towers)
    if name == "mmoe":
        return MMOE(features, tasks, num_experts, expert, towers)
    if name == "ple":
        return PLE(features, tasks, 2, num_experts // 2, num_experts // 2, expert, towers)
    if name == "esmm":
        return ESMM(features[:1], features[1:], whole_tower, whole_tower)
    return AITM(features, num_tasks, whole_tower, [{"dims": []}] * num_tasks)


def as_in_the_papers(model: nn.Module) -> nn.Module:
    """``model`` without batch normalisation, and without biases in gates."""
    for name, module in model.named_modules():
        if isinstance(module, MLP):
            module.mlp = nn.Sequential(*(layer for layer in module.mlp if not isinstance(layer, nn.BatchNorm1d)))
            if "gate" in name and "info_gates" not in name:
                module.mlp[0].bias = None
    return model


def make(name: str, setting: str, work: Workload, seed: int, base_rates: Tensor, fill: bool) -> Candidate:
    model = build(name, work)
    extra = int(name == "esmm")  # its first output is P(purchase | click)

    def columns(ids: Tensor) -> dict[str, Tensor]:
        return dict(zip(work.fields, ids.T, strict=True))

    def predict(ids: Tensor) -> Tensor:
        return model(columns(ids))[:, extra:]

    if setting != DEFAULT:
        return alike(as_in_the_papers(model), predict, work, setting, fill)
    trainer = MTLTrainer(model, ["classification"] * (len(work.tasks) + extra))

    def train(ids: Tensor, labels: Tensor) -> None:
        if extra:  # the trainer reads a label for each output, and leaves out the first
            labels = torch.cat([labels[:, :1], labels], dim=1)
        trainer.train_one_epoch([(columns(i), y) for i, y in work.batches(ids, labels)])

    return model, train, predict
