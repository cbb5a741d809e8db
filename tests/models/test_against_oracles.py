"""Whole over-archs against the papers' equations, in float64, options and ablations included."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from tests.modules import parameters
from tests.oracles import bpcm, tafe
from torchrec_mtl import TaskChain
from torchrec_mtl.models import (
    AITMArch,
    BPCMArch,
    CrossStitchArch,
    ESCM2Arch,
    ESMMArch,
    MMoEArch,
    OMoEArch,
    PLEArch,
    SharedBottomArch,
    TAFEArch,
)
from torchrec_mtl.modules import DSelectK, SmoothStepSchedule

B, F, D, K, T = 3, 5, 6, 4, 3
TASKS = TaskChain(["click", "cart", "purchase"])


def scrambled(module):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.double().parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.6)
    return module.eval()


def fields():
    return torch.randn(B, F, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("over", ["embedding", "fields"])
@pytest.mark.parametrize("num_heads", [1, 2])
@pytest.mark.parametrize(
    ("arguments", "without"),
    [
        ({}, ()),
        ({"layer_norm": True}, ()),
        ({"attention": False}, ("attention",)),
        ({"aggregation": False}, ("aggregation",)),
        ({"gate": False}, ("gate",)),
        ({"conversion": False}, ("transition",)),
    ],
)
def test_bpcm_is_its_equations(over, num_heads, arguments, without):
    arch = scrambled(
        BPCMArch(F, D, TASKS, num_heads=num_heads, tower_layer_sizes=(7, 4), aggregation_over=over, **arguments)
    )
    expected = bpcm.forward(fields().numpy(), parameters.bpcm(arch), num_heads, over, without)
    np.testing.assert_allclose(arch(fields()).detach().numpy(), expected, rtol=1e-11)


SMALL_TAFE = {"num_layers": 2, "num_inducing_points": K, "tower_layer_sizes": (3,), "selector_layer_sizes": (3,)}


@pytest.mark.parametrize(
    ("selector", "backend"),
    [("shared", "auto"), ("shared", "modules"), ("shared", "reference"), ("shared", "sdpa"), ("per_layer", "auto")],
)
@pytest.mark.parametrize("residual", ["input", "query", "none"])
@pytest.mark.parametrize(
    ("sample_wise", "task_indicators"), [(True, True), (False, True), (True, False), (False, False)]
)
def test_tafe_is_its_equations(selector, residual, sample_wise, task_indicators, backend):
    arch = scrambled(
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
    expected = tafe.forward(
        fields().numpy(),
        parameters.tafe(arch),
        gamma=4.0,
        num_heads=2,
        residual=residual,
        selector_kind=selector,
        with_asrg=sample_wise,
        with_tsa=task_indicators,
    )
    np.testing.assert_allclose(arch(fields()).detach().numpy(), expected, rtol=1e-10)


EXPERTS = {"expert_layer_sizes": (4, 5), "tower_layer_sizes": (3,)}
TAFE_SIZES = {"num_layers": 2, "num_inducing_points": K, "tower_layer_sizes": (3,), "selector_layer_sizes": (3,)}


@pytest.mark.parametrize(
    "arch",
    [
        SharedBottomArch(F * D, T, bottom_layer_sizes=(4,), tower_layer_sizes=(3,)),
        CrossStitchArch(F * D, T, layer_sizes=(4,), tower_layer_sizes=(3,)),
        ESMMArch(F * D, TASKS, tower_layer_sizes=(3,)),
        ESCM2Arch(F * D, TASKS, tower_layer_sizes=(3,)),
        AITMArch(F * D, TASKS, tower_layer_sizes=(4, 3)),
        OMoEArch(F * D, T, num_experts=3, **EXPERTS),
        MMoEArch(F * D, T, num_experts=3, **EXPERTS),
        MMoEArch(F * D, T, num_experts=3, **EXPERTS, gate=DSelectK(gamma=8.0)),
        PLEArch(F * D, T, num_layers=3, num_task_experts=1, **EXPERTS),
        BPCMArch(F, D, TASKS, num_heads=2, tower_layer_sizes=(3,), message_dropout=0.0),
        TAFEArch(F, D, T, **TAFE_SIZES),
        TAFEArch(F, D, T, **TAFE_SIZES, sample_wise=False, task_indicators=False),
    ],
    ids=[
        "shared_bottom",
        "cross_stitch",
        "esmm",
        "escm2",
        "aitm",
        "omoe",
        "mmoe",
        "mmoe_dselect_k",
        "ple",
        "bpcm",
        "tafe",
        "tafe_ablated",
    ],
)
def test_gradients_are_those_of_the_function(arch):
    """Of the embeddings and of every parameter."""
    arch = scrambled(arch)
    names = [name for name, _ in arch.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(arch, dict(zip(names, values, strict=True)), (x,))

    inputs = (fields()[:2].requires_grad_(), *(p.detach().requires_grad_() for p in arch.parameters()))
    assert gradcheck(run, inputs, fast_mode=True)
