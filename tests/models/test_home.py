"""HoME, against the equations of its docstring."""

import pytest
import torch

from tests.modules import parameters
from tests.modules.parameters import assert_close, randn, randomized
from tests.oracles import common, home
from tests.support import TREE, chain
from torchrec_mtl import Task, TaskForest
from torchrec_mtl.errors import InputError
from torchrec_mtl.models import HoMEArch

IN = 10
TWO_FUNNELS = TaskForest(Task("click"), Task("follow"), Task("buy", after="click"))


def make(tasks, **arguments):
    sizes = {"layer_size": 6, "tower_layer_sizes": (4,), "feature_gate_ranks": (3, 2)}
    return randomized(HoMEArch(IN, tasks, **{**sizes, **arguments}))


@pytest.mark.parametrize(
    "numbers",
    [
        {},
        {"num_shared_experts": 1, "num_category_experts": 1, "num_task_experts": 1, "feature_gate_ranks": (2,)},
        {"num_shared_experts": 3, "num_category_experts": 1, "num_task_experts": 2},
    ],
)
@pytest.mark.parametrize(
    ("tasks", "categories", "expected"),
    [
        (chain(1), None, [0]),
        (chain(3), None, [0, 0, 0]),
        (chain(3), [1, 0, 1], [1, 0, 1]),
        (TWO_FUNNELS, None, [0, 1, 0]),
        (TREE, [0, 1, 2, 3], [0, 1, 2, 3]),
    ],
)
def test_matches_the_equations(tasks, categories, expected, numbers):
    arch, x = make(tasks, categories=categories, **numbers), randn(4, IN)
    params = parameters.home(arch)
    assert_close(arch(x), common.per_sample(home.home, x.numpy(), params=params, categories=expected))


def moved(arch, change):
    x = randn(4, IN)
    before = arch(x)
    with torch.no_grad():
        change.add_(1.0)
    return (arch(x) != before).any(0).tolist()


def test_an_expert_reaches_those_that_it_is_for():
    def arch():
        return make(TWO_FUNNELS)

    made = arch()
    assert moved(made, made.task_experts[0].linear.bias[:3]) == [True, False, False]
    made = arch()
    assert moved(made, made.experts[1].linear.bias[:3]) == [True, False, True]
    made = arch()
    assert moved(made, made.experts[0].linear.bias[:3]) == [True, True, True]
    made = arch()
    assert moved(made, made.meta_experts[1].linear.bias[:3]) == [True, True, True]  # by the shared representation


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"categories": [0, 1]}, r"`categories` \(=\[0, 1\]\) must be one number per task, from 0 on without a gap"),
        ({"categories": [0, 2, 2]}, r"`categories` \(=\[0, 2, 2\]\) must be one number per task, from 0 on"),
        ({"categories": [-1, 0, 1]}, r"`categories` \(=\[-1, 0, 1\]\) must be one number per task, from 0 on"),
        ({"categories": []}, r"`categories` \(=\[\]\) must be one number per task"),
        ({"feature_gate_ranks": ()}, r"`feature_gate_ranks` \(=\[\]\) must have at least one"),
        ({"num_category_experts": 0}, r"`num_category_experts` \(=0\) must be at least 1"),
    ],
)
def test_wrong_arguments_raise(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        HoMEArch(IN, chain(3), **arguments)
