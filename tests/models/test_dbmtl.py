"""DBMTL, against its equations."""

import pytest
import torch

from tests.models.expert_archs import every_gate
from tests.modules import parameters
from tests.modules.parameters import assert_close, randn, randomized
from tests.oracles import common, dbmtl
from tests.support import TREE, chain
from torchrec_mtl.errors import InputError
from torchrec_mtl.models import DBMTLArch

SIZES = {
    "small": {"bottom_layer_sizes": (7,), "tower_layer_sizes": (6,), "relation_layer_sizes": (5,)},
    "deep": {"bottom_layer_sizes": (7, 6), "tower_layer_sizes": (6, 4), "relation_layer_sizes": (5, 3)},
    "no_bottom": {"bottom_layer_sizes": (), "tower_layer_sizes": (6,), "relation_layer_sizes": (5,)},
    "no_towers": {"bottom_layer_sizes": (7,), "tower_layer_sizes": (), "relation_layer_sizes": (5,)},
}


def assert_is_dbmtl(arch, tasks):
    x = randn(4, 10)
    expected = common.per_sample(dbmtl.dbmtl, x.numpy(), params=parameters.dbmtl(arch), parents=tasks.parents)
    assert_close(arch(x), expected)


@pytest.mark.parametrize("tasks", [chain(1), chain(2), chain(4), TREE], ids=str)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_matches_the_equations(sizes, tasks):
    assert_is_dbmtl(randomized(DBMTLArch(10, tasks, **sizes)), tasks)


@every_gate
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_matches_the_equations_with_experts(sizes, gate):
    arch = DBMTLArch(10, TREE, **sizes, num_experts=3, expert_layer_sizes=(6, 5), **gate)
    assert_is_dbmtl(randomized(arch), TREE)


def test_a_task_hears_of_those_that_it_needs_alone():
    arch, x = randomized(DBMTLArch(10, TREE, **SIZES["small"])), randn(4, 10)
    for task, name in enumerate(TREE):
        before = arch(x)
        with torch.no_grad():
            for parameter in arch.representations[task].parameters():
                parameter.mul_(1.5)
        moved = (arch(x) != before).any(0).tolist()
        assert moved == [other == task or task in TREE.ancestors(other) for other in range(len(TREE))], name


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_experts": -1}, r"`num_experts` \(=-1\) must be at least 0"),
        ({"relation_layer_sizes": ()}, r"`relation_layer_sizes` \(=\[\]\) must have at least one layer"),
        ({"num_experts": 2, "expert_layer_sizes": ()}, r"`expert_layer_sizes` \(=\[\]\) must have at least one layer"),
    ],
)
def test_wrong_arguments_raise(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        DBMTLArch(10, TREE, **arguments)
