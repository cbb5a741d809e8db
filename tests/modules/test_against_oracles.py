"""Each module against the equation it stands for, in float64."""

import numpy as np
import pytest
import torch

from tests.modules import parameters
from tests.oracles import bpcm, common, tafe
from torchrec_mtl.modules import (
    BehaviorPatternConversion,
    ComplementaryGate,
    DynamicSelector,
    FeatureAggregation,
    FeatureTower,
    RepresentationGenerator,
    SelfAttentionStack,
    SmoothStepSchedule,
    TaskAdapter,
    advance_schedules,
    smooth_step,
)

B, F, D, K, T, L = 3, 5, 6, 4, 3, 3


@pytest.fixture(autouse=True)
def _float64():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def scrambled(module):
    """Parameters far from their initial values, so that no term can hide as a one or a zero."""
    with torch.no_grad():
        for parameter in module.double().parameters():
            parameter.normal_(0, 0.7)
    return module.eval()


def assert_close(actual, expected):
    np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("over", ["embedding", "fields"])
def test_aggregation_is_bpcm_equation_4(over):
    module = scrambled(FeatureAggregation(F, D, hidden_size=7, over=over))
    x = torch.randn(B, F, D)
    (weight1, bias1), (weight2, bias2) = parameters.mlp(module)
    weights = {"weight1": weight1, "bias1": bias1, "weight2": weight2, "bias2": bias2}
    assert_close(module(x), common.per_sample(bpcm.aggregation, x.numpy(), weights=weights, mixing=over))


def test_gate_is_bpcm_equations_5_and_6():
    module = scrambled(ComplementaryGate(D))
    attended, organic = torch.randn(B, F, D), torch.randn(B, F, D)
    weights = {
        "aggregated": parameters.array(module.organic.weight),
        "attended": parameters.array(module.attended.weight),
    }

    def gate(e_att, e_org):
        return bpcm.complementary_gate(e_org, e_att, bpcm.gate_signal(e_org, e_att, weights))

    assert_close(module(attended, organic), common.per_sample(gate, attended.numpy(), organic.numpy()))


@pytest.mark.parametrize("without", [(), ("attention",), ("aggregation",), ("gate",)])
@pytest.mark.parametrize("num_heads", [1, 3])
@pytest.mark.parametrize("over", ["embedding", "fields"])
def test_feature_tower_is_bpcm_equations_2_to_6(without, num_heads, over):
    kept = dict.fromkeys(without, False)
    module = scrambled(FeatureTower(F, D, num_heads, over, **kept))
    x = torch.randn(B, F, D)
    tower = parameters.feature_tower(module)
    expected = common.per_sample(
        bpcm.feature_tower, x.numpy(), tower=tower, num_heads=num_heads, mixing=over, without=without
    )
    assert_close(module(x), expected)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("num_heads", [1, 2])
def test_conversion_is_bpcm_equations_7_to_9(layer_norm, num_heads):
    module = scrambled(BehaviorPatternConversion(D, num_heads, layer_norm=layer_norm))
    query, former = torch.randn(B, F, D), torch.randn(B, F, D)
    transition = parameters.conversion(module)
    expected = common.per_sample(bpcm.bpc, query.numpy(), former.numpy(), transition=transition, num_heads=num_heads)
    assert_close(module(query, former), expected)


def test_conversion_drops_only_what_is_passed_on():
    module = BehaviorPatternConversion(D, dropout=1.0).train()
    query = torch.randn(B, F, D)
    assert_close(module(query, torch.randn(B, F, D)), query.numpy())  # the whole message is dropped, q stays


@pytest.mark.parametrize("gamma", [10.0, 1.0, 1e-3])
def test_smooth_step_is_tafe_equation_16(gamma):
    x = torch.cat([torch.linspace(-1, 1, 101) * gamma, torch.tensor([-1e6, -gamma / 2, gamma / 2, 1e6])])
    assert_close(smooth_step(x, gamma), tafe.smooth_step(x.numpy(), gamma))
    assert smooth_step(x, gamma)[-4:].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("step", [0, 1, 20_000, 49_995, 49_996, 1_000_000])
def test_selector_is_tafe_equations_14_to_16(step):
    module = scrambled(DynamicSelector(F * D, K, layer_sizes=(7, 3)))
    module.step.fill_(step)
    x = torch.randn(B, F, D)
    assert module.gamma().item() == pytest.approx(tafe.gamma_schedule(step), rel=1e-12)
    layers = parameters.mlp(module)
    expected = tafe.smooth_step(common.per_sample(tafe.selector, x.numpy(), layers=layers), tafe.gamma_schedule(step))
    assert_close(module(x.flatten(1)), expected)


@pytest.mark.parametrize("residual", ["input", "query", "none"])
@pytest.mark.parametrize("selector", ["shared", "per_layer"])
def test_generator_is_tafe_equations_14_to_20(residual, selector):
    module = scrambled(RepresentationGenerator(F, D, L, 2, K, selector, (7,), residual=residual))
    x = torch.randn(B, F, D)
    layers = parameters.interactions(module)
    params = {"selectors": [parameters.mlp(s) for s in module.selectors], "layers": layers}
    for sample, fields in enumerate(x.numpy()):
        inputs = fields
        selections = tafe.selections(fields, params, gamma=10.0, selector_kind=selector)
        for i, layer in enumerate(layers):
            inputs = tafe.asrg(inputs, selections[i], layer, 2, residual, first=i == 0)
            assert_close(module(x)[i][sample], inputs)


def test_stack_is_the_self_attention_of_the_ablation():
    module = scrambled(SelfAttentionStack(D, L, num_heads=2))
    x = torch.randn(B, F, D)
    for sample, fields in enumerate(x.numpy()):
        inputs = fields
        for i, pair in enumerate(zip(module.layers, module.norms, strict=True)):
            inputs = tafe.self_attention_layer(inputs, parameters.self_attention(*pair), 2)
            assert_close(module(x)[i][sample], inputs)


def test_adapter_is_tafe_equations_21_and_22():
    module = scrambled(TaskAdapter(T, D, L, num_heads=2))
    representations = [torch.randn(B, K, D) for _ in range(L)]
    adapted = module(representations)
    for sample in range(B):
        for task in range(T):
            former = None
            for adapters, shared in zip(parameters.adapters(module), representations, strict=True):
                former = tafe.task_adapter(shared[sample].numpy(), former, adapters[task], 2)
            assert_close(adapted[sample, task], former)


def test_adapters_send_nothing_into_another_tasks_output():
    module = scrambled(TaskAdapter(T, D, L))
    adapted = module([torch.randn(B, K, D) for _ in range(L)])
    adapted[:, 0].sum().backward()
    for parameter in module.parameters():
        assert parameter.grad[:, 1:].eq(0).all()
        assert parameter.grad[:, 0].ne(0).any()


def test_schedule_reaches_its_end_exactly():
    selector = DynamicSelector(F * D, K, schedule=SmoothStepSchedule(start=1.0, rate=0.5, end=0.25))
    widths = []
    for _ in range(4):
        widths.append(selector.gamma().item())
        advance_schedules(selector)
    assert widths == [1.0, 0.5, 0.25, 0.25]
