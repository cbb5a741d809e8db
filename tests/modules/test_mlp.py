"""ReLU layers are TorchRec's, in values and gradients, and keep their form."""

import copy

import pytest
import torch
from torchrec.modules import mlp

from torchrec_mtl.errors import InputError
from torchrec_mtl.modules import MLP


def test_values_and_gradients_are_torchrecs_to_the_last_bit():
    own, theirs = MLP(6, [5, 4]), mlp.MLP(6, [5, 4])
    theirs.load_state_dict(copy.deepcopy(own.state_dict()))
    x, y = (torch.linspace(-2, 2, 18).view(3, 6).requires_grad_() for _ in range(2))
    outputs = own(x), theirs(y)
    for output in outputs:
        output.square().sum().backward()
    assert outputs[0].equal(outputs[1])
    assert x.grad.equal(y.grad)
    for mine, other in zip(own.parameters(), theirs.parameters(), strict=True):
        assert mine.grad.equal(other.grad)


@pytest.mark.parametrize(("sizes", "sentence"), [([], "`layer_sizes`"), ([3, 0], "`layer_sizes`")])
def test_wrong_sizes_are_refused(sizes, sentence):
    with pytest.raises(InputError, match=sentence):
        MLP(6, sizes)
