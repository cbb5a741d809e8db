"""Experts, mixtures of experts and extraction layers, against the equations of MMoE and PLE."""

import numpy as np
import pytest
import torch

from tests.modules import parameters
from tests.modules.parameters import assert_close, randn, randomized
from tests.oracles import common, experts
from torchrec_mtl.errors import InputError
from torchrec_mtl.modules import DSelectK, Experts, ExtractionLayer, MixtureOfExperts, SoftmaxGate

B, IN, T = 3, 6, 3
every_gate = pytest.mark.parametrize("gate", [SoftmaxGate, DSelectK(gamma=6.0)], ids=["softmax", "dselect_k"])


@every_gate
@pytest.mark.parametrize("num_gates", [1, 3])
@pytest.mark.parametrize("sizes", [(4,), (5, 7, 4)], ids=len)
def test_mixtures_match_mmoe(sizes, num_gates, gate):
    module = randomized(MixtureOfExperts(IN, 4, sizes, gate, num_gates=num_gates))
    params, x = parameters.mixture(module), randn(B, IN)

    def mixtures(row):
        outputs = [experts.expert(row, mlp) for mlp in params["experts"]]
        return np.stack([experts.mixture(row, outputs, of_task) for of_task in params["gates"]])

    assert_close(module(x), common.per_sample(mixtures, x.numpy()))


@every_gate
@pytest.mark.parametrize("shared_gate", [True, False])
@pytest.mark.parametrize("num_task_experts", [0, 2])
def test_extraction_layers_match_ple_equation_5(num_task_experts, shared_gate, gate):
    module = randomized(ExtractionLayer(T, IN, num_task_experts, 2, (7, 5), gate, shared_gate=shared_gate))
    params, states = parameters.extraction_layer(module), randn(T + 1, B, IN)
    expected = common.per_sample(lambda *x: np.stack(experts.extraction_layer(x, params)), *states.numpy())
    assert_close(torch.stack(module(states.unbind()), dim=1), expected)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Experts(0, IN, (4,)), r"`num_experts` \(=0\) must be at least 1"),
        (lambda: Experts(2, IN, ()), r"`expert_layer_sizes` \(=\[\]\) must have at least one layer"),
        (lambda: ExtractionLayer(T, IN, -1, 2, (4,)), r"`num_task_experts` \(=-1\) must be at least 0"),
        (lambda: ExtractionLayer(T, IN, 1, 0, (4,)), r"`num_shared_experts` \(=0\) must be at least 1"),
    ],
)
def test_wrong_arguments_raise(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()
