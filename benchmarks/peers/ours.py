"""torchrec_mtl: by default towers start from base rates, and the loss takes logits."""

import torch
from common import (
    BOTTOM_SIZES,
    EMBEDDING_DIM,
    LEARNING_RATE,
    NUM_EXPERTS,
    TABLE_STD,
    TOWER_SIZES,
    Data,
    main,
    train_alike,
)
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

from torchrec_mtl import TaskChain, losses, models
from torchrec_mtl.modules import start_from_base_rates


def draw(table: Tensor) -> None:
    nn.init.normal_(table, std=TABLE_STD)  # the jobs' default, and what is alike for all libraries


def build(data: Data, model: str) -> nn.Module:
    tables = [
        EmbeddingBagConfig(
            name=f"t{i}", feature_names=[f"f{i}"], num_embeddings=size, embedding_dim=EMBEDDING_DIM, init_fn=draw
        )
        for i, size in enumerate(data.sizes)
    ]
    tasks = TaskChain([f"y{t}" for t in range(data.num_tasks)])
    collection = EmbeddingBagCollection(tables=tables)
    if model == "shared_bottom":
        return models.SharedBottom(collection, tasks, bottom_layer_sizes=BOTTOM_SIZES, tower_layer_sizes=TOWER_SIZES)
    sizes = {"expert_layer_sizes": BOTTOM_SIZES, "tower_layer_sizes": TOWER_SIZES}
    return models.MMoE(collection, tasks, num_experts=NUM_EXPERTS, **sizes)


def train(data: Data, name: str, alike: bool, seed: int):
    model, keys = build(data, name), [f"f{i}" for i in range(len(data.sizes))]

    def logits(ids: Tensor) -> Tensor:
        ones = torch.ones(ids.numel(), dtype=torch.int64)
        return model(torch.empty(len(ids), 0), KeyedJaggedTensor.from_lengths_sync(keys, ids.T.flatten(), ones))

    if alike:
        train_alike(model, lambda ids: logits(ids).sigmoid(), data, seed)
        return logits
    start_from_base_rates(model, data.train_labels.mean(0))
    optimizer, loss_function = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE), losses.CrossEntropyLoss()
    for rows in data.batches(seed):
        loss = loss_function(logits(data.train_ids[rows]), data.train_labels[rows], None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return logits


if __name__ == "__main__":
    main(train)
