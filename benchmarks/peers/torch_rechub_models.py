"""torch-rechub: by default its own trainer, and batch normalisation in every MLP."""

import torch
from common import DEFAULT, Candidate, Sizes, Start, alike, batches
from torch import Tensor, nn
from torch_rechub.basic.features import SparseFeature
from torch_rechub.basic.layers import MLP
from torch_rechub.models.multi_task import AITM, ESMM, MMOE, PLE, SharedBottom
from torch_rechub.trainers import MTLTrainer

MODELS = ("shared_bottom", "mmoe", "ple", "esmm", "aitm")


def build(name: str, sizes: Sizes) -> nn.Module:
    features = [SparseFeature(field, vocab_size=n, embed_dim=sizes.embedding_dim) for field, n in sizes.fields.items()]
    tasks, towers = ["classification"] * sizes.num_tasks, [{"dims": list(sizes.tower_sizes)}] * sizes.num_tasks
    expert, whole_tower = {"dims": list(sizes.expert_sizes)}, {"dims": list(sizes.whole_tower_sizes)}
    if name == "shared_bottom":
        return SharedBottom(features, tasks, expert, towers)
    if name == "mmoe":
        return MMOE(features, tasks, sizes.num_experts, expert, towers)
    if name == "ple":
        return PLE(features, tasks, 2, sizes.num_experts // 2, sizes.num_experts // 2, expert, towers)
    if name == "esmm":
        return ESMM(features[:1], features[1:], whole_tower, whole_tower)
    return AITM(features, sizes.num_tasks, whole_tower, [{"dims": []}] * sizes.num_tasks)


def as_in_the_papers(model: nn.Module) -> nn.Module:
    """``model`` without batch normalisation, and without the gates' biases."""
    for name, module in model.named_modules():
        if isinstance(module, MLP):
            module.mlp = nn.Sequential(*(layer for layer in module.mlp if not isinstance(layer, nn.BatchNorm1d)))
            if "gate" in name and "info_gates" not in name:
                module.mlp[0].bias = None
    return model


def make(name: str, setting: str, sizes: Sizes, seed: int, base_rates: Tensor, start: Start) -> Candidate:
    model = build(name, sizes)
    outputs = slice(1, None) if name == "esmm" else slice(None)  # ESMM's first is P(purchase | click)

    def columns(ids: Tensor) -> dict[str, Tensor]:
        return dict(zip(sizes.fields, ids.T, strict=True))

    def predict(ids: Tensor) -> Tensor:
        return model(columns(ids))[:, outputs]

    if setting != DEFAULT:
        return alike(as_in_the_papers(model), predict, sizes, setting, start)
    trainer = MTLTrainer(model, ["classification"] * (sizes.num_tasks + (name == "esmm")))

    def train(ids: Tensor, labels: Tensor) -> None:
        if name == "esmm":  # whose trainer reads as many labels as there are outputs, and leaves out the first
            labels = torch.cat([labels[:, :1], labels], dim=1)
        trainer.train_one_epoch([(columns(i), y) for i, y in batches(ids, labels, sizes.batch_size)])

    return Candidate(model, train, predict)
