"""FuxiCTR: its wheel leaves out the multi-task models, so they are made here of its own blocks and its base class.

By default tables are drawn with deviation 1e-4, linear layers by Xavier's rule, and gradients clipped to norm 10.
"""

import torch
from common import (
    BOTTOM_SIZES,
    EMBEDDING_DIM,
    LEARNING_RATE,
    NUM_EXPERTS,
    TOWER_SIZES,
    Data,
    draw_alike,
    main,
    train_alike,
)
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import MultiTaskModel
from torch import Tensor, nn


class Model(MultiTaskModel):
    def __init__(self, feature_map: FeatureMap, num_experts: int) -> None:
        num_tasks = len(feature_map.labels)
        unused = {"model_root": "", "metrics": ["AUC"], "verbose": 0}
        super().__init__(feature_map, task=["binary_classification"] * num_tasks, num_tasks=num_tasks, **unused)
        width, bottom, tower = EMBEDDING_DIM * feature_map.num_fields, list(BOTTOM_SIZES), list(TOWER_SIZES)
        self.embedding = FeatureEmbedding(feature_map, EMBEDDING_DIM)
        self.experts = nn.ModuleList(MLP_Block(width, bottom) for _ in range(num_experts))
        gates = num_tasks if num_experts > 1 else 0
        self.gates = nn.ModuleList(MLP_Block(width, [], output_dim=num_experts, use_bias=False) for _ in range(gates))
        self.towers = nn.ModuleList(MLP_Block(bottom[-1], tower, output_dim=1) for _ in range(num_tasks))
        self.compile("adam", "binary_crossentropy", LEARNING_RATE)
        self.reset_parameters()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        x = self.embedding(self.get_inputs(inputs), flatten_emb=True)
        experts = torch.stack([expert(x) for expert in self.experts], dim=1)
        mixed = [torch.einsum("be,bed->bd", gate(x).softmax(1), experts) for gate in self.gates]
        states = mixed or [experts[:, 0]] * self.num_tasks
        outputs = zip(self.feature_map.labels, self.output_activation, self.towers, states, strict=True)
        return {f"{label}_pred": activation(tower(state)) for label, activation, tower, state in outputs}


def train(data: Data, name: str, alike: bool, seed: int):
    feature_map = FeatureMap("synthetic", "")
    feature_map.features = {f"f{i}": {"type": "categorical", "vocab_size": int(n)} for i, n in enumerate(data.sizes)}
    feature_map.labels, feature_map.num_fields = [f"y{t}" for t in range(data.num_tasks)], len(data.sizes)
    model = Model(feature_map, NUM_EXPERTS if name == "mmoe" else 1)

    def predict(ids: Tensor) -> Tensor:
        return torch.cat(list(model(dict(zip(feature_map.features, ids.T, strict=True))).values()), dim=1)

    if alike:
        draw_alike(model)
        train_alike(model, predict, data, seed)
        return predict
    model._max_gradient_norm = 10.0  # the default of its `fit`, which wants a data loader of its own kind
    for rows in data.batches(seed):
        columns = [*zip(feature_map.features, data.train_ids[rows].T, strict=True)]
        columns += zip(feature_map.labels, data.train_labels[rows].T, strict=True)
        model.train_step(dict(columns))
    return predict


if __name__ == "__main__":
    main(train)
