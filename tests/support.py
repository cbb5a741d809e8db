"""Small tables, batches and models that the tests share."""

from collections.abc import Sequence

import torch
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

from torchrec_mtl import MultiTaskTrain, TaskChain, losses, models
from torchrec_mtl.data import MultiTaskBatch
from torchrec_mtl.modules import SmoothStepSchedule

TASKS = TaskChain(["click", "cart", "purchase"])
NUM_EMBEDDINGS = (11, 7, 5, 13)
NUM_DENSE = 3

# Every model of the library, small, with its paper's loss.
MODELS = {
    "single_task": (models.SingleTask, {"layer_sizes": (8,)}, losses.CrossEntropyLoss),
    "shared_bottom": (
        models.SharedBottom,
        {"bottom_layer_sizes": (8,), "tower_layer_sizes": (4,)},
        losses.CrossEntropyLoss,
    ),
    "omoe": (
        models.OMoE,
        {"num_experts": 3, "expert_layer_sizes": (8, 6), "tower_layer_sizes": (8,)},
        losses.CrossEntropyLoss,
    ),
    "mmoe": (
        models.MMoE,
        {"num_experts": 3, "expert_layer_sizes": (8, 6), "tower_layer_sizes": (8,)},
        losses.CrossEntropyLoss,
    ),
    "mmoe_dselect_k": (
        models.MMoE,
        {"num_experts": 3, "expert_layer_sizes": (8, 6), "tower_layer_sizes": (8,), "gate": "dselect_k"},
        losses.CrossEntropyLoss,
    ),
    "ple": (
        models.PLE,
        {"num_task_experts": 1, "expert_layer_sizes": (8, 6), "tower_layer_sizes": (8,)},
        losses.CrossEntropyLoss,
    ),
    "cross_stitch": (
        models.CrossStitch,
        {"layer_sizes": (8, 6), "tower_layer_sizes": (4,)},
        losses.CrossEntropyLoss,
    ),
    "esmm": (models.ESMM, {"tower_layer_sizes": (8,)}, losses.CrossEntropyLoss),
    "escm2_ips": (models.ESCM2, {"tower_layer_sizes": (8,)}, losses.CounterfactualLoss),
    "escm2_dr": (models.ESCM2, {"tower_layer_sizes": (8,), "estimator": "dr"}, losses.CounterfactualLoss),
    "aitm": (models.AITM, {"tower_layer_sizes": (8, 6)}, losses.CalibratedLoss),
    "bpcm": (models.BPCM, {"tower_layer_sizes": (8,), "num_heads": 2}, losses.CalibratedLoss),
    "tafe": (
        models.TAFE,
        {
            "num_layers": 3,
            "num_inducing_points": 5,
            "tower_layer_sizes": (4,),
            "selector_layer_sizes": (6,),
            "schedule": SmoothStepSchedule(start=1.0, rate=0.1, end=1e-3),
        },
        losses.DependenceLoss,
    ),
}


def tables(
    embedding_dims: Sequence[int] = (4, 4, 4, 4), device: str | torch.device | None = None
) -> EmbeddingBagCollection:
    """One table a field, ``f0``, ``f1``, ..."""
    configs = [
        EmbeddingBagConfig(name=f"t{i}", embedding_dim=dim, num_embeddings=NUM_EMBEDDINGS[i], feature_names=[f"f{i}"])
        for i, dim in enumerate(embedding_dims)
    ]
    return EmbeddingBagCollection(tables=configs, device=torch.device(device) if device else None)


def build(
    name: str, embedding_dims: Sequence[int] = (4, 4, 4, 4), device: str | None = None, **arguments: object
) -> nn.Module:
    """A model of `MODELS`, dense features included."""
    model, small, _ = MODELS[name]
    return model(
        tables(embedding_dims, device),
        TASKS,
        dense_in_features=NUM_DENSE,
        dense_arch_layer_sizes=(6, 4),
        dense_device=torch.device(device) if device else None,
        **{**small, **arguments},
    )


def train_model(name: str, **arguments: object) -> nn.Module:
    """A model of `build`'s with its loss, as it is trained."""
    model, _, loss = MODELS[name]
    wrapper = models.ESCM2Train if model is models.ESCM2 else MultiTaskTrain
    return wrapper(build(name, **arguments), loss())


def batch(size: int, seed: int = 0, weighted: bool = False) -> MultiTaskBatch:
    """Random bags of 0 to 3 ids a field, dense features, labels of a true funnel."""
    generator = torch.Generator().manual_seed(seed)
    num_fields = len(NUM_EMBEDDINGS)
    lengths = torch.randint(0, 4, (num_fields, size), generator=generator)
    ids = [
        torch.randint(0, n, (int(of_field.sum()),), generator=generator)
        for n, of_field in zip(NUM_EMBEDDINGS, lengths, strict=True)
    ]
    sparse = KeyedJaggedTensor.from_lengths_sync(
        keys=[f"f{i}" for i in range(num_fields)], values=torch.cat(ids), lengths=lengths.flatten()
    )
    happened = torch.rand(size, len(TASKS), generator=generator) < 0.6
    return MultiTaskBatch(
        dense_features=torch.randn(size, NUM_DENSE, generator=generator),
        sparse_features=sparse,
        labels=happened.int().cumprod(1).float(),
        weights=torch.randint(0, 3, happened.shape, generator=generator).float() if weighted else None,
    )


def take(source: MultiTaskBatch, rows: Sequence[int]) -> MultiTaskBatch:
    """The rows of a batch, in the order given."""
    parts = []
    for jagged in source.sparse_features.to_dict().values():
        offsets = jagged.offsets()
        parts.append([jagged.values()[offsets[row] : offsets[row + 1]] for row in rows])
    sparse = KeyedJaggedTensor.from_lengths_sync(
        keys=source.sparse_features.keys(),
        values=torch.cat([ids for part in parts for ids in part]),
        lengths=torch.tensor([len(ids) for part in parts for ids in part]),
    )
    index = torch.tensor(list(rows))
    weights = None if source.weights is None else source.weights[index]
    return MultiTaskBatch(source.dense_features[index], sparse, source.labels[index], weights)
