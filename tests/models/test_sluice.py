"""Sluice networks, against their paper's equations and against cross-stitch networks."""

import numpy as np
import pytest
import torch
from torch import nn

from tests.modules import parameters
from tests.modules.parameters import array, assert_close, randn, randomized
from tests.oracles import common, sluice
from tests.support import TASKS, batch, build
from torchrec_mtl import MultiTaskTrain
from torchrec_mtl.errors import InputError
from torchrec_mtl.losses import CrossEntropyLoss
from torchrec_mtl.models import CrossStitchArch, SluiceArch

every_shape = pytest.mark.parametrize(("num_tasks", "num_layers", "num_subspaces"), [(1, 1, 1), (2, 2, 2), (3, 3, 3)])


def make(num_tasks, num_layers, num_subspaces):
    numbers = {"num_layers": num_layers, "num_subspaces": num_subspaces}
    return randomized(SluiceArch(10, num_tasks, **numbers, layer_size=6, tower_layer_sizes=(4,)))


@every_shape
def test_matches_the_equations(num_tasks, num_layers, num_subspaces):
    arch, x = make(num_tasks, num_layers, num_subspaces), randn(4, 10)
    params = parameters.sluice(arch)
    expected = common.per_sample(sluice.sluice, x.numpy(), parameters=params, num_subspaces=num_subspaces)
    assert_close(arch(x), expected)
    outputs = arch.outputs(x)
    assert list(outputs) == list(arch.output_names)
    assert_close(outputs["logits"], expected)
    assert_close(outputs["subspace_penalty"], sluice.subspace_penalty(params, num_subspaces))


@pytest.mark.parametrize("num_tasks", [1, 3])
def test_one_subspace_and_the_last_layer_make_a_cross_stitch_network(num_tasks):
    arch = make(num_tasks, 2, 1)
    stitched = CrossStitchArch(10, num_tasks, layer_sizes=(6, 6), tower_layer_sizes=(4,), stitch="layer").double()
    stitched.load_state_dict({name: p for name, p in arch.state_dict().items() if "beta" not in name})
    with torch.no_grad():
        arch.layer_stitch.beta.copy_(torch.tensor([0.0, 1.0]))
    assert_close(arch(randn(4, 10)), array(stitched(randn(4, 10))), rtol=1e-12)


def test_starts_with_most_of_a_subspace_from_itself_and_the_mean_of_the_layers():
    arch = SluiceArch(10, 2, num_layers=4, layer_size=6)
    np.testing.assert_allclose(array(arch.layers[0].unit.alpha), 0.1 / 3 + np.eye(4) * (0.9 - 0.1 / 3), rtol=1e-6)
    assert arch.layer_stitch.beta.tolist() == [[0.25] * 4] * 2


class Orthogonal(nn.Module):
    """A loss of one's own that reads the penalty."""

    def __init__(self):
        super().__init__()
        self.cross_entropy = CrossEntropyLoss(TASKS)

    def forward(self, logits, labels, weights=None, *, subspace_penalty):
        return self.cross_entropy(logits, labels, weights) + 0.1 * subspace_penalty


def test_a_loss_may_read_the_penalty():
    torch.manual_seed(0)
    trained, rows = MultiTaskTrain(build("sluice"), Orthogonal()), batch(16)
    optimizer = torch.optim.SGD(trained.parameters(), 0.01)
    penalties = []
    for _ in range(5):
        optimizer.zero_grad()
        trained(rows)[0].backward()
        optimizer.step()
        penalties.append(trained.model.outputs(rows.dense_features, rows.sparse_features)["subspace_penalty"].item())
    assert penalties == sorted(penalties, reverse=True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_subspaces": 3}, r"`num_subspaces` \(=3\) must divide the width of a layer \(=128\)"),
        ({"num_subspaces": 0}, r"`num_subspaces` \(=0\) must be at least 1"),
        ({"num_layers": 0}, r"`num_layers` \(=0\) must be at least 1"),
    ],
)
def test_wrong_arguments_raise(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        SluiceArch(10, 3, **arguments)
