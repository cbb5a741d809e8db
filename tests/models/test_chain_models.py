"""ESMM, ESCM2, AITM and Cross-Stitch against their papers' equations, in float64."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchrec import EmbeddingBagCollection
from torchrec.fx import symbolic_trace

from tests.models.test_against_oracles import scrambled
from tests.modules import parameters
from tests.oracles import chains, common
from tests.support import batch, build, train_model
from torchrec_mtl import TaskChain
from torchrec_mtl.errors import InputError
from torchrec_mtl.models import AITMArch, CrossStitchArch, ESCM2Arch, ESMMArch
from torchrec_mtl.modules import CrossStitchUnit, MarginalFromConditional

B, N = 4, 10


def chain(num_tasks):
    return TaskChain([f"step_{t}" for t in range(num_tasks)])


number_of_tasks = pytest.mark.parametrize("num_tasks", [1, 2, 4])


def inputs():
    return torch.randn(B, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def assert_is(arch, oracle, weights):
    expected = common.per_sample(lambda x: oracle(x, weights), inputs().numpy())
    np.testing.assert_allclose(arch(inputs()).detach().numpy(), expected, rtol=1e-11)


@number_of_tasks
@pytest.mark.parametrize("sizes", [(), (7,), (7, 5, 4)])
def test_esmm_is_its_equations(num_tasks, sizes):
    arch = scrambled(ESMMArch(N, chain(num_tasks), tower_layer_sizes=sizes))
    assert_is(arch, chains.esmm, parameters.towers(arch.towers))


@number_of_tasks
@pytest.mark.parametrize("estimator", ["ips", "dr"])
def test_escm2_is_its_equations(num_tasks, estimator):
    arch = scrambled(ESCM2Arch(N, chain(num_tasks), estimator=estimator, tower_layer_sizes=(7, 5)))
    towers = parameters.towers(arch.towers)
    assert_is(arch, chains.esmm, towers)
    outputs = arch.outputs(inputs())
    conditional = common.per_sample(lambda x: chains.conditional_logits(x, towers), inputs().numpy())
    np.testing.assert_allclose(outputs["conditional_logits"].detach().numpy(), conditional, rtol=1e-11)
    assert tuple(outputs) == arch.output_names
    assert torch.equal(outputs["logits"], arch(inputs()))
    if estimator == "ips" or num_tasks == 1:
        assert "imputed_errors" not in outputs
    else:
        towers = [parameters.mlp(tower) for tower in arch.imputation_towers]
        expected = common.per_sample(lambda x: chains.imputed_errors(x, towers), inputs().numpy())
        np.testing.assert_allclose(outputs["imputed_errors"].detach().numpy(), expected, rtol=1e-11)


@number_of_tasks
@pytest.mark.parametrize("sizes", [(6,), (7, 5, 4)])
def test_aitm_is_its_equations(num_tasks, sizes):
    arch = scrambled(AITMArch(N, chain(num_tasks), tower_layer_sizes=sizes))
    weights = parameters.aitm(arch) if num_tasks > 1 else {"f": [parameters.mlp(arch.representations)]}
    assert_is(arch, chains.aitm, {**weights, "towers": parameters.towers(arch.towers)})


@number_of_tasks
@pytest.mark.parametrize("sizes", [(), (6,), (7, 5)])
@pytest.mark.parametrize("stitch", ["channel", "layer"])
def test_cross_stitch_is_its_equations(num_tasks, sizes, stitch):
    arch = scrambled(CrossStitchArch(N, num_tasks, layer_sizes=sizes, tower_layer_sizes=(4,), stitch=stitch))
    assert_is(arch, chains.cross_stitch, parameters.cross_stitch(arch))


@number_of_tasks
@pytest.mark.parametrize("per", ["channel", "layer"])
def test_a_cross_stitch_unit_starts_as_a_convex_combination(num_tasks, per):
    x = torch.randn(1, num_tasks, 3).expand(5, -1, -1)
    mixed = CrossStitchUnit(num_tasks, 3, per)(x)
    others = x.sum(1, keepdim=True) - x
    expected = x if num_tasks == 1 else 0.9 * x + 0.1 * others / (num_tasks - 1)
    torch.testing.assert_close(mixed, expected)
    same = torch.ones(2, num_tasks, 3)
    torch.testing.assert_close(CrossStitchUnit(num_tasks, 3, per)(same), same)


logit = st.floats(-300, 300) | st.floats(-5, 5)


@given(st.lists(logit, min_size=1, max_size=6))
def test_marginal_logits_are_right_for_rare_and_near_certain_events(conditional):
    """Also in float32, where a product of probabilities, or one minus it, would be 0."""
    rounded = np.float32(conditional)
    expected = chains.marginal_logits(rounded)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        x = torch.tensor(rounded, dtype=dtype)[None].requires_grad_()
        logits = MarginalFromConditional(chain(x.shape[1]))(x)
        np.testing.assert_allclose(logits[0].detach().double().numpy(), expected, rtol=tolerance, atol=tolerance)
        logits.sum().backward()
        assert x.grad.isfinite().all()
        assert (x.grad >= 0).all()  # no step's likelihood makes a task less likely


def test_marginal_probabilities_are_products():
    x = torch.randn(50, 5, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(MarginalFromConditional(chain(5))(x).sigmoid(), x.sigmoid().cumprod(1))
    assert torch.autograd.gradcheck(MarginalFromConditional(chain(5)), x[:3].detach().requires_grad_())


@pytest.mark.parametrize("name", ["esmm", "escm2_ips", "escm2_dr", "aitm", "cross_stitch"])
def test_starts_from_base_rates(name):
    trained = train_model(name)
    rates = torch.tensor([0.2, 0.03, 0.0004])
    trained.model.start_from_base_rates(rates)
    for tower in trained.model.over_arch.towers.towers:
        nn.init.zeros_(tower.output.weight)  # leaves the bias
    rows = batch(5)
    predictions = trained.model(rows.dense_features, rows.sparse_features).sigmoid()
    torch.testing.assert_close(predictions, rates.expand(5, 3))


def test_rates_that_do_not_fall_are_no_funnels():
    with pytest.raises(
        InputError, match=r"`base_rates` \(=\[0.25, 0.25, 0.125\]\) must fall from a task to those after it"
    ):
        build("esmm").start_from_base_rates(torch.tensor([0.25, 0.25, 0.125]))


@pytest.mark.parametrize("name", ["escm2_ips", "escm2_dr", "esmm"])
@pytest.mark.parametrize("weighted", [False, True])
def test_train_wrappers_trace_as_torchrecs_pipelines_trace_them(name, weighted):
    trained, rows = train_model(name), batch(9, weighted=weighted)
    leaves = {
        type(module).__name__
        for module in trained.modules()
        if not any(isinstance(m, EmbeddingBagCollection) for m in module.modules())
    }
    traced = symbolic_trace(copy.deepcopy(trained), leaf_modules=["EmbeddingBagCollection", *leaves])
    torch.testing.assert_close(traced(rows), trained(rows))


@pytest.mark.parametrize("name", ["escm2_ips", "escm2_dr"])
def test_escm2_reports_the_models_own_logits(name):
    trained, rows = train_model(name), batch(9)
    _, (_, logits, labels) = trained(rows)
    torch.testing.assert_close(logits, trained.model(rows.dense_features, rows.sparse_features))
    assert torch.equal(labels, rows.labels)
