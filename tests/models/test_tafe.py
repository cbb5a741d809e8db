"""TAFE, against its paper's equations, options and ablations included."""

import numpy as np
import pytest
import torch

from tests.modules import parameters
from tests.modules.parameters import assert_close, randn, randomized
from tests.oracles import tafe
from tests.support import TASKS, batch, build, tables
from torchrec_mtl import MultiTaskTrain, Task, TaskForest
from torchrec_mtl.errors import InputError
from torchrec_mtl.losses import ExitDepthLoss
from torchrec_mtl.models import TAFE, TAFEArch

B, F, D, T = 3, 5, 6, 3
PATHS = ("auto", "modules", "reference", "sdpa")
LAYERS = {"tower_layer_sizes": (7,), "selector_layer_sizes": (5,)}
SIZES = {"num_layers": 3, "num_heads": 2, "num_inducing_points": 4, **LAYERS}


def oracle_parameters(arch, sample_wise, task_indicators):
    generator, adapter = arch.extraction.generator, arch.extraction.adapter
    layout = parameters.generator_layers if sample_wise else parameters.self_attention_layers
    return {
        "selectors": [parameters.mlp(selector) for selector in generator.selectors] if sample_wise else [],
        "layers": layout(generator),
        "adapters": parameters.adapters(adapter) if task_indicators else [],
        "towers": parameters.towers(arch.towers),
    }


@pytest.mark.parametrize(
    ("selector", "backend"),
    [*(("shared", name) for name in PATHS), ("per_layer", "auto")],
)
@pytest.mark.parametrize("residual", ["input", "query", "none"])
@pytest.mark.parametrize(
    ("sample_wise", "task_indicators"), [(True, True), (False, True), (True, False), (False, False)]
)
def test_matches_the_equations(selector, residual, sample_wise, task_indicators, backend):
    parts = {"sample_wise": sample_wise, "task_indicators": task_indicators}
    arch = randomized(
        TAFEArch(
            F, D, T, **SIZES, **parts, selector=selector, schedule=(4.0, 2e-4, 1e-3), residual=residual, backend=backend
        )
    )
    fields, params = randn(B, F, D, seed=1), oracle_parameters(arch, **parts)
    expected = tafe.forward(fields.numpy(), params, 4.0, 2, residual, selector, sample_wise, task_indicators)
    assert_close(arch(fields), expected, rtol=1e-10)


@pytest.mark.parametrize(("selector", "backend"), [("shared", "auto"), ("shared", "modules"), ("per_layer", "auto")])
@pytest.mark.parametrize(
    ("sample_wise", "task_indicators"), [(True, True), (False, True), (True, False), (False, False)]
)
def test_matches_the_equations_where_the_selection_masks(selector, sample_wise, task_indicators, backend):
    parts = {"sample_wise": sample_wise, "task_indicators": task_indicators}
    arguments = {"selector": selector, "schedule": (4.0, 2e-4, 1e-3), "backend": backend}
    arch = randomized(TAFEArch(F, D, T, **SIZES, **parts, **arguments, selection="mask"))
    fields, params = randn(B, F, D, seed=1), oracle_parameters(arch, **parts)
    expected = tafe.forward(
        fields.numpy(),
        params,
        4.0,
        2,
        "input",
        selector,
        with_asrg=sample_wise,
        with_tsa=task_indicators,
        masked=True,
    )
    assert_close(arch(fields), expected, rtol=1e-10)
    if sample_wise:
        plain = tafe.forward(fields.numpy(), params, 4.0, 2, "input", selector, sample_wise, task_indicators)
        assert abs(plain - expected).max() > 1e-3


@pytest.mark.parametrize(("selector", "backend"), [("shared", name) for name in PATHS] + [("per_layer", "auto")])
@pytest.mark.parametrize(("sample_wise", "num_indicators", "projection"), [(True, 3, True), (False, 2, False)])
def test_matches_the_equations_with_several_indicators_and_without_the_adapters_projection(
    selector, backend, sample_wise, num_indicators, projection
):
    """Each indicator is a task of the oracle, with the weights of its task; a tower reads them side by side."""
    arguments = {"selector": selector, "schedule": (4.0, 2e-4, 1e-3), "backend": backend, "sample_wise": sample_wise}
    readings = {"num_indicators": num_indicators, "adapter_output_projection": projection}
    arch = randomized(TAFEArch(F, D, T, **SIZES, **arguments, **readings))
    params = oracle_parameters(arch, sample_wise, True)
    for layer in params["adapters"]:
        assert len(layer) == T * num_indicators
        for place, adapter in enumerate(layer):
            first = layer[place // num_indicators * num_indicators]
            assert all((adapter[name] == first[name]).all() for name in ("key", "value", "out"))
            assert projection or (adapter["out"] == np.eye(D)).all()
    fields = randn(B, F, D, seed=1)
    expected = tafe.forward(fields.numpy(), params, 4.0, 2, "input", selector, sample_wise)
    assert_close(arch(fields), expected, rtol=1e-10)


def test_a_projection_left_out_is_no_parameter_and_survives_the_meta_device():
    with torch.device("meta"):
        arch = TAFEArch(F, D, T, **SIZES, adapter_output_projection=False)
    adapter = arch.extraction.adapter
    assert "output_weight" not in dict(adapter.named_parameters()) | adapter.state_dict()
    adapter.to_empty(device="cpu").reset_parameters()
    assert torch.equal(adapter.output_weight, torch.eye(D).expand(3, T, D, D))


@pytest.mark.parametrize("backend", ["auto", "modules"])
def test_conditional_probabilities_are_multiplied_along_the_funnel(backend):
    tree = TaskForest(Task("click"), Task("like", after="click"), Task("buy", after="click"))
    arguments = {**SIZES, "schedule": (4.0, 2e-4, 1e-3), "backend": backend}
    arch = randomized(TAFEArch(F, D, T, tree, **arguments, probabilities="conditional"))
    fields = randn(B, F, D, seed=1)
    conditional = tafe.forward(fields.numpy(), oracle_parameters(arch, True, True), 4.0, 2)
    outputs = arch.outputs(fields)
    assert_close(outputs["conditional_logits"], conditional, rtol=1e-10)
    p = outputs["conditional_logits"].sigmoid()
    marginal = torch.stack([p[:, 0], p[:, 0] * p[:, 1], p[:, 0] * p[:, 2]], dim=1)
    torch.testing.assert_close(outputs["logits"].sigmoid(), marginal)
    torch.testing.assert_close(arch(fields), outputs["logits"])
    arch.start_from_base_rates(torch.tensor([0.5, 0.1, 0.05]))
    biases = [float(tower.output.bias.detach().sigmoid()) for tower in arch.towers.towers]
    assert biases == pytest.approx([0.5, 0.2, 0.1])
    with pytest.raises(InputError, match=r"`tasks` \(=None\) must be 3 tasks for conditional `probabilities`"):
        TAFEArch(F, D, T, **arguments, probabilities="conditional")


def test_only_conditional_tafe_takes_the_likelihood_of_the_depth():
    model = build("tafe", probabilities="conditional")
    loss, _ = MultiTaskTrain(model, ExitDepthLoss(TASKS))(batch(8))
    loss.backward()
    assert all(x.grad is not None for x in model.over_arch.towers.parameters())
    with pytest.raises(InputError, match="reads 'conditional_logits', which TAFE does not give"):
        MultiTaskTrain(build("tafe"), ExitDepthLoss(TASKS))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_inducing_points": 0}, r"`num_inducing_points` \(=0\) must be at least 1"),
        ({"selector_layer_sizes": (4, 0)}, r"`selector_layer_sizes` \(=\[4, 0\]\) must be"),
        ({"probabilities": "joint"}, r"`probabilities` \(='joint'\) must be one of"),
        ({"num_indicators": 0}, r"`num_indicators` \(=0\) must be at least 1"),
        ({"selection": "none"}, r"`selection` \(='none'\) must be one of"),
        ({"backend": "c++"}, r"`backend` \(='c\+\+'\) must be one of"),
        ({"selector": "per_layer", "backend": "sdpa"}, r"`backend` \(='sdpa'\) needs"),
        ({"schedule": (1, -1)}, "`schedule`"),
        ({"features": tables(())}, "at least one table"),
    ],
)
def test_wrong_arguments_raise(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        TAFE(**{"features": tables(), "tasks": TASKS, **arguments})
