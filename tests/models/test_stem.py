"""STEM, against its equations, values and gradients."""

import pytest
import torch

from tests.models.expert_archs import every_gate
from tests.modules import parameters
from tests.modules.parameters import assert_close, randn, randomized
from tests.oracles import common, stem
from tests.oracles.differences import derivatives
from tests.support import TASKS, batch, build, feature_arch
from torchrec_mtl.errors import InputError
from torchrec_mtl.models import STEM, STEMArch

IN = 5


def make(num_tasks=3, **arguments):
    sizes = {"num_shared_experts": 2, "expert_layer_sizes": (7, 6), "tower_layer_sizes": (4,)}
    return randomized(STEMArch(IN, num_tasks, **{**sizes, **arguments}))


@every_gate
@pytest.mark.parametrize(("num_tasks", "own", "shared"), [(1, 1, 1), (2, 1, 3), (3, 2, 1)])
def test_matches_the_equations(num_tasks, own, shared, gate):
    # three selectors need as many experts
    arch = make(num_tasks, num_task_experts=own + 2, num_shared_experts=shared, **gate)
    x = randn(4, num_tasks + 1, IN)
    assert_close(arch(x), common.per_sample(stem.stem, x.numpy(), params=parameters.stem(arch)))
    assert torch.equal(arch(x), arch(x.flatten(1)))


def test_gradients_are_those_of_the_equations_in_which_other_tasks_stay_as_they_are():
    arch, x = make(), randn(4, IN)
    params, at = parameters.stem(arch), x.numpy()
    jacobian = torch.autograd.functional.jacobian(lambda x: arch(x.unsqueeze(0)).squeeze(0), x)
    assert_close(jacobian, derivatives(lambda x: stem.stem(x, params, held=at), at), rtol=1e-6, atol=1e-8)


def test_a_task_trains_its_tables_and_experts_and_the_shared_ones_alone():
    """Though its prediction reads those of all."""
    torch.manual_seed(0)
    model, rows = build("stem"), batch(16)
    logits = model(rows.dense_features, rows.sparse_features)
    for task in range(len(TASKS)):
        model.zero_grad()
        logits[:, task].sum().backward(retain_graph=True)
        for part in (model.features, model.over_arch.experts):
            trained = [any(p.grad is not None and p.grad.any() for p in each.parameters()) for each in part]
            assert trained == [other in (task, len(TASKS)) for other in range(len(TASKS) + 1)]
    before = logits.detach()
    with torch.no_grad():
        for parameter in model.features[0].parameters():
            parameter.add_(1.0)
    assert (model(rows.dense_features, rows.sparse_features) != before).any(0).all()


def test_tables_start_with_values_of_their_own_and_the_given_ones_are_shared():
    torch.manual_seed(0)
    features = feature_arch()
    given = {name: value.clone() for name, value in features.state_dict().items()}
    model = STEM(features, TASKS)
    assert model.features[-1] is features
    for name, value in given.items():
        values = [each.state_dict()[name] for each in model.features]
        assert torch.equal(values[-1], value), name
        if "embedding_bags" in name:
            assert len({each.sum().item() for each in values}) == len(TASKS) + 1, name


@pytest.mark.parametrize("name", ["num_task_experts", "num_shared_experts"])
def test_a_number_of_experts_below_1_raises(name):
    with pytest.raises(InputError, match=rf"`{name}` \(=0\) must be at least 1"):
        STEMArch(10, 3, **{name: 0})
