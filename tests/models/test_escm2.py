"""ESCM2, against its paper's equations."""

import pytest
import torch

from tests.modules import parameters
from tests.modules.parameters import assert_close, randn, randomized
from tests.oracles import chains, common
from tests.support import TASKS, batch, chain, tables, train_model
from torchrec_mtl.errors import InputError
from torchrec_mtl.models import ESCM2, ESCM2Arch


@pytest.mark.parametrize("num_tasks", [1, 2, 4])
@pytest.mark.parametrize("estimator", ["ips", "dr"])
def test_matches_the_equations(num_tasks, estimator):
    arch = randomized(ESCM2Arch(10, chain(num_tasks), estimator=estimator, tower_layer_sizes=(7, 5)))
    x, towers = randn(4, 10), parameters.towers(arch.towers)
    assert_close(arch(x), common.per_sample(chains.esmm, x.numpy(), towers=towers))
    outputs = arch.outputs(x)
    conditional = common.per_sample(chains.conditional_logits, x.numpy(), towers=towers)
    assert_close(outputs["conditional_logits"], conditional)
    assert tuple(outputs) == arch.output_names
    assert torch.equal(outputs["logits"], arch(x))
    if estimator == "ips" or num_tasks == 1:
        assert "imputed_errors" not in outputs
    else:
        imputation = [parameters.mlp(tower) for tower in arch.imputation_towers]
        assert_close(outputs["imputed_errors"], common.per_sample(chains.imputed_errors, x.numpy(), towers=imputation))


@pytest.mark.parametrize("name", ["escm2_ips", "escm2_dr"])
def test_the_train_wrapper_returns_the_models_logits(name):
    trained, rows = train_model(name), batch(9)
    _, (_, logits, labels) = trained(rows)
    torch.testing.assert_close(logits, trained.model(rows.dense_features, rows.sparse_features))
    assert torch.equal(labels, rows.labels)


def test_an_unknown_estimator_raises():
    with pytest.raises(InputError, match=r"`estimator` \(='snips'\) must be one of \['ips', 'dr'\]"):
        ESCM2(tables(), TASKS, estimator="snips")
