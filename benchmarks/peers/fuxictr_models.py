"""FuxiCTR: its wheel leaves out the multi-task models, so they are made here of its own blocks and its base class.

By default tables are drawn with deviation 1e-4, linear layers by Xavier's rule, and gradients clipped to norm 10.
"""

import torch
from common import DEFAULT, LEARNING_RATE, Candidate, Sizes, Start, alike, batches
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import MultiTaskModel
from torch import Tensor, nn

MODELS = ("shared_bottom", "mmoe")
NOTE = "its wheel has no multi-task models: put together of its blocks"


class Model(MultiTaskModel):
    """Shared-Bottom with one expert, else MMoE."""

    def __init__(self, feature_map: FeatureMap, sizes: Sizes, num_experts: int) -> None:
        num_tasks = sizes.num_tasks
        unused = {"model_root": "", "metrics": ["AUC"], "verbose": 0}
        super().__init__(feature_map, task=["binary_classification"] * num_tasks, num_tasks=num_tasks, **unused)
        width = sizes.embedding_dim * len(sizes.field_sizes)
        expert, tower = list(sizes.expert_sizes), list(sizes.tower_sizes)
        self.embedding = FeatureEmbedding(feature_map, sizes.embedding_dim)
        self.experts = nn.ModuleList(MLP_Block(width, expert) for _ in range(num_experts))
        gates = num_tasks if num_experts > 1 else 0
        self.gates = nn.ModuleList(MLP_Block(width, [], output_dim=num_experts, use_bias=False) for _ in range(gates))
        self.towers = nn.ModuleList(MLP_Block(expert[-1], tower, output_dim=1) for _ in range(num_tasks))
        self.compile("adam", "binary_crossentropy", LEARNING_RATE)
        self.reset_parameters()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        x = self.embedding(self.get_inputs(inputs), flatten_emb=True)
        experts = torch.stack([expert(x) for expert in self.experts], dim=1)
        mixed = [torch.einsum("be,bed->bd", gate(x).softmax(1), experts) for gate in self.gates]
        states = mixed or [experts[:, 0]] * self.num_tasks
        outputs = zip(self.feature_map.labels, self.output_activation, self.towers, states, strict=True)
        return {f"{label}_pred": activation(tower(state)) for label, activation, tower, state in outputs}


def make(name: str, setting: str, sizes: Sizes, seed: int, base_rates: Tensor, start: Start) -> Candidate:
    feature_map = FeatureMap("synthetic", "")
    feature_map.features = {field: {"type": "categorical", "vocab_size": n} for field, n in sizes.fields.items()}
    feature_map.labels, feature_map.num_fields = sizes.tasks, len(sizes.field_sizes)
    model = Model(feature_map, sizes, sizes.num_experts if name == "mmoe" else 1)

    def columns(names: list[str], values: Tensor) -> dict[str, Tensor]:
        return dict(zip(names, values.T, strict=True))

    def predict(ids: Tensor) -> Tensor:
        return torch.cat(list(model(columns(list(sizes.fields), ids)).values()), dim=1)

    if setting != DEFAULT:
        return alike(model, predict, sizes, setting, start)
    model._max_gradient_norm = 10.0  # the default of its `fit`, which wants a data loader of its own kind

    def train(ids: Tensor, labels: Tensor) -> None:
        model.train()
        for some_ids, some_labels in batches(ids, labels, sizes.batch_size):
            model.train_step(columns(list(sizes.fields), some_ids) | columns(sizes.tasks, some_labels))

    return Candidate(model, train, predict)
