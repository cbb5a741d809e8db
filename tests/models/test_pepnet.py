"""PEPNet, against its equations, values and gradients."""

import numpy as np
import pytest
import torch

from tests.modules import parameters
from tests.modules.parameters import assert_close, randn, randomized
from tests.oracles import common, pepnet
from tests.oracles.differences import derivatives
from tests.support import NUM_DENSE, TASKS, batch, feature_arch
from torchrec_mtl.errors import InputError
from torchrec_mtl.models import PEPNet, PEPNetArch

DIMS = [3, 2, 4]
PRIORS = {
    "all": {},
    "named": {"domain_fields": [2], "prior_fields": [1, 0]},
    "no_epnet": {"domain_fields": [], "prior_fields": [1]},
    "no_ppnet": {"domain_fields": [0], "prior_fields": []},
    "neither": {"domain_fields": [], "prior_fields": []},
}
every_prior = pytest.mark.parametrize("priors", PRIORS.values(), ids=PRIORS)


def make(num_tasks=3, sizes=(6, 5), **priors):
    return randomized(PEPNetArch(DIMS, num_tasks, tower_layer_sizes=sizes, **priors))


@every_prior
@pytest.mark.parametrize("sizes", [(6,), (6, 5, 4)], ids=str)
@pytest.mark.parametrize("num_tasks", [1, 3])
def test_matches_the_equations(num_tasks, sizes, priors):
    arch, x = make(num_tasks, sizes, **priors), randn(4, sum(DIMS))
    expected = common.per_sample(pepnet.pepnet, x.numpy(), params=parameters.pepnet(arch), dims=DIMS)
    assert_close(arch(x), expected)


@every_prior
def test_no_gradient_reaches_the_embeddings_through_a_gate_unless_by_the_prior(priors):
    """The derivatives are those of the equations in which what is stopped stays as it is."""
    arch, x = make(**priors), randn(sum(DIMS))
    params, at = parameters.pepnet(arch), x.numpy()
    held = (at, pepnet.personal(at, params, DIMS, at))
    jacobian = torch.autograd.functional.jacobian(lambda x: arch(x.unsqueeze(0)).squeeze(0), x)
    assert_close(jacobian, derivatives(lambda x: pepnet.pepnet(x, params, DIMS, held), at), rtol=1e-6, atol=1e-8)
    through_gates = derivatives(lambda x: pepnet.pepnet(x, params, DIMS), at)
    assert np.allclose(jacobian.numpy(), through_gates, atol=1e-4) == (priors == PRIORS["neither"])


def test_a_gate_starts_where_it_changes_nothing_if_its_output_layer_is_zero():
    arch, plain = make(**PRIORS["named"]), make(**PRIORS["neither"])
    plain.load_state_dict(arch.state_dict(), strict=False)
    for gate in (arch.embedding_gate.unit, *(gate for of_task in arch.layer_gates for gate in of_task)):
        torch.nn.init.zeros_(gate.output.weight)
        torch.nn.init.zeros_(gate.output.bias)
    x = randn(4, sum(DIMS))
    torch.testing.assert_close(arch(x), plain(x), rtol=0, atol=0)


def test_fields_are_named():
    """Of tables of any dimensions, before the dense field."""
    model = PEPNet(feature_arch((2, 8, 4, 3)), TASKS, domain_fields=["f3"], prior_fields=["f2", "f0"])
    assert (model.over_arch.embedding_gate.domain_fields, model.over_arch.prior_fields) == ([3], [2, 0])
    assert model.over_arch.field_dims == [2, 8, 4, 3, 4]
    assert model(torch.randn(5, NUM_DENSE), batch(5).sparse_features).shape == (5, 3)


@pytest.mark.parametrize("argument", ["domain_fields", "prior_fields"])
def test_wrong_fields_raise(argument):
    with pytest.raises(InputError, match=rf"`{argument}` \(='f5'\) must be one of \['f0', .*\]"):
        PEPNet(feature_arch(), TASKS, **{argument: ["f5"]})
    with pytest.raises(InputError, match=rf"`{argument}` \(=\[1, 1\]\) must be different positions, below 5"):
        PEPNet(feature_arch(), TASKS, **{argument: ["f1", "f1"]})
    with pytest.raises(InputError, match=rf"`{argument}` \(=\[-1\]\) must be different positions, below 3"):
        PEPNetArch(DIMS, 3, **{argument: [-1]})
