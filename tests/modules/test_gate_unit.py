"""The gates of PEPNet, against its equations."""

import pytest
import torch

from tests.modules import parameters
from tests.modules.parameters import assert_close, randn, randomized
from tests.oracles import common, pepnet
from torchrec_mtl.errors import InputError
from torchrec_mtl.modules import EmbeddingGate, GateUnit

DIMS = [3, 2, 4]


def test_a_gate_unit_is_that_of_the_equation():
    gate, x = randomized(GateUnit(5, 4, 3)), randn(6, 5)
    assert_close(gate(x), common.per_sample(pepnet.gate_unit, x.numpy(), gate=parameters.mlp(gate)))
    assert ((gate(100 * x) >= 0) & (gate(100 * x) <= 2)).all()


@pytest.mark.parametrize("fields", [[0], [2, 1], [0, 1, 2]], ids=str)
def test_an_embedding_gate_is_epnet(fields):
    gate, x = randomized(EmbeddingGate(DIMS, fields)), randn(6, sum(DIMS))
    params = {"embedding_gate": parameters.mlp(gate), "domain_fields": fields}
    assert_close(gate(x), [pepnet.personal(row, params, DIMS, row) for row in x.numpy()])


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ([], "`domain_fields` must be at least one position"),
        ([3], r"`domain_fields` \(=\[3\]\) must be different positions, below 3"),
        ([1, 1], r"`domain_fields` \(=\[1, 1\]\) must be different positions, below 3"),
    ],
)
def test_wrong_positions_raise(fields, sentence):
    with pytest.raises(InputError, match=sentence):
        EmbeddingGate(DIMS, fields)


def test_a_gate_passes_the_gradient_of_the_embeddings_but_not_that_of_its_input():
    gate = EmbeddingGate(DIMS, [1])
    torch.nn.init.zeros_(gate.unit.output.weight)
    torch.nn.init.zeros_(gate.unit.output.bias)
    x = torch.randn(6, sum(DIMS), requires_grad=True)
    gate(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(x))
