"""TAFE, against its paper's equations, options and ablations included."""

import pytest

from tests.modules import parameters
from tests.modules.parameters import assert_close, randn, randomized
from tests.oracles import tafe
from tests.support import TASKS, tables
from torchrec_mtl.errors import InputError
from torchrec_mtl.models import TAFE, TAFEArch
from torchrec_mtl.modules import SmoothStepSchedule

B, F, D, K, T = 3, 5, 6, 4, 3


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
    [("shared", "auto"), ("shared", "modules"), ("shared", "reference"), ("shared", "sdpa"), ("per_layer", "auto")],
)
@pytest.mark.parametrize("residual", ["input", "query", "none"])
@pytest.mark.parametrize(
    ("sample_wise", "task_indicators"), [(True, True), (False, True), (True, False), (False, False)]
)
def test_matches_the_equations(selector, residual, sample_wise, task_indicators, backend):
    arch = randomized(
        TAFEArch(
            F,
            D,
            T,
            num_layers=3,
            num_heads=2,
            num_inducing_points=K,
            tower_layer_sizes=(7,),
            selector=selector,
            selector_layer_sizes=(5,),
            schedule=SmoothStepSchedule(start=4.0),
            residual=residual,
            sample_wise=sample_wise,
            task_indicators=task_indicators,
            backend=backend,
        )
    )
    fields = randn(B, F, D, seed=1)
    expected = tafe.forward(
        fields.numpy(),
        oracle_parameters(arch, sample_wise, task_indicators),
        gamma=4.0,
        num_heads=2,
        residual=residual,
        selector_kind=selector,
        with_asrg=sample_wise,
        with_tsa=task_indicators,
    )
    assert_close(arch(fields), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"num_heads": 3}, r"`num_heads` \(=3\) must divide `embedding_dim` \(=4\)"),
        ({"num_layers": 0}, r"`num_layers` \(=0\) must be at least 1"),
        ({"num_inducing_points": 0}, r"`num_inducing_points` \(=0\) must be at least 1"),
        ({"selector_layer_sizes": (4, 0)}, r"`selector_layer_sizes` \(=\[4, 0\]\) must be"),
        ({"backend": "c++"}, r"`backend` \(='c\+\+'\) must be one of"),
        ({"selector": "per_layer", "backend": "sdpa"}, r"`backend` \(='sdpa'\) needs"),
        ({"residual": "sum"}, r"`residual` \(='sum'\) must be"),
        ({"selector": "each"}, r"`selector` \(='each'\) must be"),
        ({"schedule": (1, -1)}, "`schedule`"),
        ({"features": tables(())}, "at least one table"),
    ],
)
def test_wrong_arguments_raise(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        TAFE(**{"features": tables(), "tasks": TASKS, **arguments})
