"""DeepCTR-Torch: by default its own `fit`, with every weight drawn with deviation 1e-4 and an L2 penalty on tables."""

from typing import Any

from common import DEFAULT, Candidate, Sizes, Start, alike
from deepctr_torch.inputs import SparseFeat
from deepctr_torch.models.multitask import ESMM, MMOE, PLE, SharedBottom
from torch import Tensor, nn

MODELS = ("shared_bottom", "mmoe", "ple", "esmm")


def build(name: str, sizes: Sizes, **arguments: Any) -> nn.Module:
    """Its gates are MLPs by default and linear here, as the papers have them."""
    columns = [SparseFeat(field, size, sizes.embedding_dim) for field, size in sizes.fields.items()]
    if name == "esmm":
        return ESMM(columns, tower_dnn_hidden_units=sizes.whole_tower_sizes, **arguments)
    arguments |= {"task_names": sizes.tasks, "task_types": ["binary"] * sizes.num_tasks}
    arguments |= {"tower_dnn_hidden_units": sizes.tower_sizes}
    if name == "shared_bottom":
        return SharedBottom(columns, bottom_dnn_hidden_units=sizes.expert_sizes, **arguments)
    arguments |= {"expert_dnn_hidden_units": sizes.expert_sizes, "gate_dnn_hidden_units": ()}
    if name == "mmoe":
        return MMOE(columns, num_experts=sizes.num_experts, **arguments)
    half = sizes.num_experts // 2
    return PLE(columns, num_levels=2, shared_expert_num=half, specific_expert_num=half, **arguments)


def make(name: str, setting: str, sizes: Sizes, seed: int, base_rates: Tensor, start: Start) -> Candidate:
    if setting != DEFAULT:
        model = build(name, sizes, seed=seed, l2_reg_embedding=0.0)
        return alike(model, model, sizes, setting, start)
    model = build(name, sizes, seed=seed)
    model.compile("adam", loss=["binary_crossentropy"] * sizes.num_tasks)

    def train(ids: Tensor, labels: Tensor) -> None:
        columns = [column.numpy() for column in ids.T]
        model.fit(columns, labels.numpy(), sizes.batch_size, epochs=1, verbose=0, shuffle=False)

    return Candidate(model, train, model)
