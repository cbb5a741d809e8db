"""Towers: what they compute, and the base rates they start from."""

import pytest
import torch
from torch import nn

from tests.modules import parameters
from tests.modules.parameters import assert_close, randn, randomized
from tests.oracles import common
from torchrec_mtl.errors import InputError
from torchrec_mtl.modules import TaskTowers, Tower, hidden_layers

B, IN, T = 4, 6, 3


@pytest.mark.parametrize("sizes", [(), (5,), (5, 4)], ids=len)
def test_each_tower_is_an_mlp_on_its_own_input(sizes):
    module, inputs = randomized(TaskTowers(T, IN, sizes)), randn(T, B, IN)
    for logits, x, layers in zip(module(inputs.unbind()).unbind(1), inputs, parameters.towers(module), strict=True):
        assert_close(logits, common.mlp(x.numpy(), layers)[:, 0])


def test_dropout_acts_on_hidden_units_in_training_alone():
    tower, x = randomized(Tower(IN, (5, 4), dropout=1.0)), randn(B, IN)
    assert_close(tower(x), common.mlp(x.numpy(), parameters.mlp(tower)))
    assert tower.train()(x).eq(tower.output.bias).all()
    assert not any(isinstance(layer, nn.Dropout) for layer in hidden_layers(IN, (5, 4)))


def test_towers_start_from_base_rates():
    towers, rates = TaskTowers(T, IN, (5,)), torch.tensor([0.2, 0.03, 0.0004])
    towers.start_from_base_rates(rates)
    for tower in towers.towers:
        nn.init.zeros_(tower.output.weight)  # leaves the bias
    torch.testing.assert_close(towers([torch.randn(B, IN)] * T).sigmoid(), rates.expand(B, T))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Tower(IN, (5, 0)), r"`tower_layer_sizes` \(=\[5, 0\]\) must be widths of 1 to"),
        (lambda: Tower(IN, (5,), dropout=-0.1), r"`dropout` \(=-0.1\) must be"),
        (lambda: Tower(IN, ()).to("meta").start_from_base_rate(0.1), "no longer on the meta device"),
        (lambda: Tower(IN, ()).start_from_base_rate(1.0), r"`base_rates` \(=1 for a task\) must be above 0 and below"),
        (lambda: TaskTowers(T, IN, ()).start_from_base_rates(torch.ones(2)), r"must be one per tower"),
    ],
)
def test_wrong_arguments_raise(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()
