"""FuxiCTR: built from its blocks and its base class, because its wheel leaves out the multi-task models.

By default tables are drawn with deviation 1e-4, linear layers by Xavier's rule, and gradients clipped to norm 10.
"""

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import MultiTaskModel
from torch import Tensor, nn

from benchmarks.peers.common import DEFAULT, LEARNING_RATE, Candidate, Workload, alike

NOTE = "its wheel has no multi-task models: built from its blocks"


class Model(MultiTaskModel):
    """Shared-Bottom with one expert, else MMoE."""

    def __init__(self, feature_map: FeatureMap, work: Workload, num_experts: int) -> None:
        num_tasks = len(work.tasks)
        kinds, unused = ["binary_classification"] * num_tasks, {"model_root": "", "metrics": ["AUC"], "verbose": 0}
        super().__init__(feature_map, task=kinds, num_tasks=num_tasks, **unused)
        width = work.embedding_dim * len(work.fields)
        self.embedding = FeatureEmbedding(feature_map, work.embedding_dim)
        self.experts = nn.ModuleList(MLP_Block(width, work.expert_sizes) for _ in range(num_experts))
        gates = num_tasks if num_experts > 1 else 0
        self.gates = nn.ModuleList(MLP_Block(width, [], output_dim=num_experts, use_bias=False) for _ in range(gates))
        width = work.expert_sizes[-1]
        self.towers = nn.ModuleList(MLP_Block(width, work.tower_sizes, output_dim=1) for _ in range(num_tasks))
        self.compile("adam", "binary_crossentropy", LEARNING_RATE)
        self.reset_parameters()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        x = self.embedding(self.get_inputs(inputs), flatten_emb=True)
        experts = torch.stack([expert(x) for expert in self.experts], dim=1)
        mixed = [torch.einsum("be,bed->bd", gate(x).softmax(1), experts) for gate in self.gates]
        states = mixed or [experts[:, 0]] * self.num_tasks
        outputs = zip(self.feature_map.labels, self.output_activation, self.towers, states, strict=True)
        return {f"{label}_pred": activation(tower(state)) for label, activation, tower, state in outputs}


def make(name: str, setting: str, work: Workload, seed: int, base_rates: Tensor, fill: bool) -> Candidate:
    feature_map = FeatureMap("synthetic", "")
    feature_map.features = {field: {"type": "categorical", "vocab_size": n} for field, n in work.fields.items()}
    feature_map.labels, feature_map.num_fields = work.tasks, len(work.fields)
    model = Model(feature_map, work, {"shared_bottom": 1, "mmoe": work.num_experts}[name])

    def columns(ids: Tensor) -> dict[str, Tensor]:
        return dict(zip(work.fields, ids.T, strict=True))

    def predict(ids: Tensor) -> Tensor:
        return torch.cat(list(model(columns(ids)).values()), dim=1)

    if setting != DEFAULT:
        return alike(model, predict, work, setting, fill)
    model._max_gradient_norm = 10.0  # the default of its `fit`, which wants a data loader of its own kind

    def train(ids: Tensor, labels: Tensor) -> None:
        model.train()
        for some_ids, some_labels in work.batches(ids, labels):
            model.train_step(columns(some_ids) | dict(zip(work.tasks, some_labels.T, strict=True)))

    return model, train, predict
