"""DeepCTR-Torch: by default its own `fit`, with every weight drawn with deviation 1e-4 and an L2 penalty on tables."""

from typing import Any

from deepctr_torch.inputs import SparseFeat
from deepctr_torch.models.multitask import ESMM, MMOE, PLE, SharedBottom
from torch import Tensor, nn

from benchmarks.peers.common import DEFAULT, Candidate, Workload, alike


def build(name: str, work: Workload, **arguments: Any) -> nn.Module:
    """Gates, which are MLPs by default, are linear here as in the papers."""
    columns = [SparseFeat(field, size, work.embedding_dim) for field, size in work.fields.items()]
    if name == "esmm":
        return ESMM(columns, tower_dnn_hidden_units=work.whole_tower_sizes, **arguments)
    arguments |= {"task_names": work.tasks, "task_types": ["binary"] * len(work.tasks)}
    arguments |= {"tower_dnn_hidden_units": work.tower_sizes}
    if name == "shared_bottom":
        return SharedBottom(columns, bottom_dnn_hidden_units=work.expert_sizes, **arguments)
    arguments |= {"expert_dnn_hidden_units": work.expert_sizes, "gate_dnn_hidden_units": ()}
    if name == "mmoe":
        return MMOE(columns, num_experts=work.num_experts, **arguments)
    half = work.num_experts // 2
    return PLE(columns, num_levels=2, shared_expert_num=half, specific_expert_num=half, **arguments)


def make(name: str, setting: str, work: Workload, seed: int, base_rates: Tensor, fill: bool) -> Candidate:
    model = build(name, work, seed=seed, **({} if setting == DEFAULT else {"l2_reg_embedding": 0.0}))
    if setting != DEFAULT:
        return alike(model, model, work, setting, fill)
    model.compile("adam", loss=["binary_crossentropy"] * len(work.tasks))

    def train(ids: Tensor, labels: Tensor) -> None:
        columns = [column.numpy() for column in ids.T]
        model.fit(columns, labels.numpy(), work.batch_size, epochs=1, verbose=0, shuffle=False)

    return model, train, model
