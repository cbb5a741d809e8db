"""DeepCTR-Torch: by default its own `fit`, with every weight drawn with deviation 1e-4 and an L2 penalty on tables."""

import torch
from common import (
    BATCH_SIZE,
    BOTTOM_SIZES,
    EMBEDDING_DIM,
    NUM_EXPERTS,
    TOWER_SIZES,
    Data,
    draw_alike,
    main,
    train_alike,
)
from deepctr_torch.inputs import SparseFeat
from deepctr_torch.models.multitask import MMOE, SharedBottom
from torch import nn


def build(data: Data, model: str, seed: int, **arguments: float) -> nn.Module:
    names = [f"f{i}" for i in range(len(data.sizes))]
    columns = [SparseFeat(name, int(size), EMBEDDING_DIM) for name, size in zip(names, data.sizes, strict=True)]
    tasks = {"task_names": [f"y{t}" for t in range(data.num_tasks)], "task_types": ["binary"] * data.num_tasks}
    arguments |= {"tower_dnn_hidden_units": TOWER_SIZES, "seed": seed, **tasks}
    if model == "shared_bottom":
        return SharedBottom(columns, bottom_dnn_hidden_units=BOTTOM_SIZES, **arguments)
    sizes = {"expert_dnn_hidden_units": BOTTOM_SIZES, "gate_dnn_hidden_units": ()}  # linear gates, as ours
    return MMOE(columns, num_experts=NUM_EXPERTS, **sizes, **arguments)


def train(data: Data, name: str, alike: bool, seed: int):
    if alike:
        model = build(data, name, seed, l2_reg_embedding=0.0)
        draw_alike(model)
        train_alike(model, model, data, seed)
        return model
    model = build(data, name, seed)
    rows = torch.cat(list(data.batches(seed)))
    model.compile("adam", loss=["binary_crossentropy"] * data.num_tasks)
    columns = [column.numpy() for column in data.train_ids[rows].T]
    model.fit(columns, data.train_labels[rows].numpy(), BATCH_SIZE, epochs=1, verbose=0, shuffle=False)
    return model.eval()


if __name__ == "__main__":
    main(train)
