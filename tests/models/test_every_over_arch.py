"""What every over arch must do by itself, without tables."""

import pytest
import torch
from torch.autograd import gradcheck

from tests.modules.parameters import randn, randomized
from tests.support import TASKS, without_dropout
from torchrec_mtl import models
from torchrec_mtl.modules import DSelectK

F, D, T = 5, 4, 3
EXPERTS = {"expert_layer_sizes": (8, 6), "tower_layer_sizes": (4,)}
DBMTL = {"bottom_layer_sizes": (8,), "tower_layer_sizes": (6,), "relation_layer_sizes": (4,)}
TAFE = {"num_layers": 2, "num_inducing_points": 6, "tower_layer_sizes": (4,), "selector_layer_sizes": (3,)}
OVER_ARCHS = {
    "shared_bottom": lambda: models.SharedBottomArch(F * D, T, bottom_layer_sizes=(8,), tower_layer_sizes=(4,)),
    "omoe": lambda: models.OMoEArch(F * D, T, num_experts=3, **EXPERTS),
    "mmoe": lambda: models.MMoEArch(F * D, T, num_experts=3, **EXPERTS),
    "mmoe_dselect_k": lambda: models.MMoEArch(F * D, T, num_experts=3, **EXPERTS, gate=DSelectK(gamma=8.0)),
    "ple": lambda: models.PLEArch(F * D, T, num_layers=3, num_task_experts=1, **EXPERTS),
    "mose": lambda: models.MoSEArch(F, D, T, num_experts=3, hidden_size=6),
    "mran": lambda: models.MRANArch(F, D, T, num_heads=2, tower_layer_sizes=(4,)),
    "adatt": lambda: models.AdaTTArch(F * D, T, layer_sizes=(8, 6), tower_layer_sizes=(4,)),
    "adatt_shared": lambda: models.AdaTTArch(F * D, T, layer_sizes=(8, 6), num_shared_experts=1),
    "dbmtl": lambda: models.DBMTLArch(F * D, TASKS, **DBMTL),
    "dbmtl_experts": lambda: models.DBMTLArch(F * D, TASKS, **DBMTL, num_experts=3, expert_layer_sizes=(6,)),
    "pepnet": lambda: models.PEPNetArch([D] * F, T, tower_layer_sizes=(8, 6)),
    "stem": lambda: models.STEMArch(F * D // (T + 1), T, num_shared_experts=2, **EXPERTS),
    "cross_stitch": lambda: models.CrossStitchArch(F * D, T, layer_sizes=(8, 6), tower_layer_sizes=(4,)),
    "sluice": lambda: models.SluiceArch(F * D, T, layer_size=6, tower_layer_sizes=(4,)),
    "esmm": lambda: models.ESMMArch(F * D, TASKS, tower_layer_sizes=(8,)),
    "escm2": lambda: models.ESCM2Arch(F * D, TASKS, tower_layer_sizes=(8,)),
    "dcmt": lambda: models.DCMTArch(F * D, TASKS, tower_layer_sizes=(8,)),
    "ddpo": lambda: models.DDPOArch(F * D, TASKS, tower_layer_sizes=(8, 6)),
    "aitm": lambda: models.AITMArch(F * D, TASKS, tower_layer_sizes=(8, 6)),
    "aitm_batch": lambda: models.AITMArch(F * D, TASKS, tower_layer_sizes=(8, 6), normalization="batch"),
    "home": lambda: models.HoMEArch(F * D, TASKS, categories=(0, 1, 0), layer_size=6, feature_gate_ranks=(3, 2)),
    "resflow": lambda: models.ResFlowArch(F * D, TASKS, tower_layer_sizes=(8, 6)),
    "bpcm": lambda: models.BPCMArch(F, D, TASKS, num_heads=2, tower_layer_sizes=(8,)),
    "tafe": lambda: models.TAFEArch(F, D, T, **TAFE),
    "tafe_modules": lambda: models.TAFEArch(F, D, T, **TAFE, backend="modules", schedule="run"),
    "tafe_ablated": lambda: models.TAFEArch(F, D, T, **TAFE, sample_wise=False, task_indicators=False),
}
STOP_GRADIENTS = ("pepnet", "stem")  # on purpose; their tests compare gradients with the equations
every_over_arch = pytest.mark.parametrize("name", OVER_ARCHS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("name", [name for name in OVER_ARCHS if name not in STOP_GRADIENTS])
def test_gradients_match_finite_differences(name):
    """With respect to the embeddings and every parameter."""
    arch = randomized(OVER_ARCHS[name]())
    names = [name for name, _ in arch.named_parameters()]

    def run(x, *values):
        return torch.func.functional_call(arch, dict(zip(names, values, strict=True)), (x,))

    inputs = (randn(2, F, D).requires_grad_(), *(p.detach().requires_grad_() for p in arch.parameters()))
    assert gradcheck(run, inputs, fast_mode=True)


@every_over_arch
@pytest.mark.parametrize("training", [True, False])
def test_compiles_without_a_graph_break(name, training):
    arch = without_dropout(OVER_ARCHS[name]().train(training)).double()  # where sums in another order agree
    compiled = torch.compile(arch, fullgraph=True, backend="eager")
    for size in (6, 7, 13):
        x = torch.randn(size, F, D, dtype=torch.float64)
        gradients = []
        for function in (arch, compiled):
            logits = function(x)
            found = torch.autograd.grad(logits.sum(), arch.parameters(), allow_unused=True, materialize_grads=True)
            gradients.append((logits.detach(), *found))
        for expected, actual in zip(*gradients, strict=True):
            torch.testing.assert_close(actual, expected)


@every_over_arch
def test_takes_fields_or_flattened(name):
    arch, x = OVER_ARCHS[name]().eval(), torch.randn(6, F, D)
    torch.testing.assert_close(arch(x.flatten(1)), arch(x))


@every_over_arch
def test_runs_under_autocast(name):
    arch, x = OVER_ARCHS[name]().eval(), torch.randn(6, F, D)
    with torch.autocast("cpu", torch.bfloat16):
        logits = arch(x)
    torch.testing.assert_close(logits.float(), arch(x), rtol=0.1, atol=0.05)


@every_over_arch
def test_runs_in_bf16(name):
    arch, x = OVER_ARCHS[name]().eval(), torch.randn(6, F, D)
    expected = arch(x)
    torch.testing.assert_close(arch.bfloat16()(x.bfloat16()).float(), expected, rtol=0.1, atol=0.05)
