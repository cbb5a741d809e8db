"""TAFE's generator and adapter: called as modules, or run as one operation."""

import pytest
import torch

from torchrec_mtl.errors import InputError
from torchrec_mtl.modules import RepresentationGenerator, TaskAdapter, TaskAwareExtraction
from torchrec_mtl.ops import library
from torchrec_mtl.ops.inducing_attention import BACKENDS

B, F, D, K, T, L = 5, 4, 6, 7, 3, 3
FUSED = [name for name in BACKENDS if name not in ("triton", "cuda")]  # tested in tests/ops


def extraction(backend="auto", num_layers=L, num_heads=2, **arguments):
    torch.manual_seed(0)
    generator = RepresentationGenerator(F, D, L, 2, K, selector_layer_sizes=(7,), **arguments)
    return TaskAwareExtraction(generator, TaskAdapter(T, D, num_layers, num_heads), backend)


def results(module):
    """The output and all gradients, with selections that are 0 and selections between 0 and 1."""
    module = module.double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    fields = torch.randn(B, F, D, generator=generator, dtype=torch.float64).requires_grad_()
    with torch.no_grad():
        selection = module.generator.select(fields)[0]
    assert selection.eq(0).any()
    assert selection.gt(0).logical_and(selection.lt(1)).any()
    output = module(fields)
    upstream = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    return output, *torch.autograd.grad(output, [fields, *module.parameters()], upstream)


@pytest.mark.parametrize(
    ("residual", "selection"), [("input", "keys"), ("query", "keys"), ("none", "keys"), ("input", "mask")]
)
@pytest.mark.parametrize("backend", FUSED)
def test_every_backend_equals_the_modules(backend, residual, selection):
    reason = library.why_not(torch.empty(0))
    if backend == "cpp" and reason is not None:
        pytest.skip(reason)
    arguments = {"residual": residual, "schedule": (3.0, 0.0, 1e-3), "selection": selection}
    expected = results(extraction("modules", **arguments))
    for actual, of_modules in zip(results(extraction(backend, **arguments)), expected, strict=True):
        torch.testing.assert_close(actual, of_modules, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("part", [RepresentationGenerator, TaskAdapter])
def test_an_edited_forward_is_called(part, monkeypatch):
    def forward(self, inputs):
        raise NotImplementedError("somebody's edit")

    monkeypatch.setattr(part, "forward", forward)
    fields = torch.randn(B, F, D)
    for edited in (extraction("modules"), extraction("auto", selector="per_layer")):
        with pytest.raises(NotImplementedError, match="somebody's edit"):
            edited(fields)


def test_only_the_modules_run_a_selector_for_each_layer():
    automatic, modules = (extraction(backend, selector="per_layer") for backend in ("auto", "modules"))
    fields = torch.randn(B, F, D)
    assert torch.equal(automatic(fields), modules(fields))
    for backend in BACKENDS[1:]:
        with pytest.raises(InputError, match=rf"`backend` \(='{backend}'\) needs a selection that all layers share"):
            extraction(backend, selector="per_layer")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"backend": "gpu"}, r"`backend` \(='gpu'\) must be one of \['modules', 'auto', 'reference'"),
        ({"num_layers": 2}, r"`adapter` \(=\(2, 6, 2\)\) must have the layers, dimension and heads of \(3, 6, 2\)"),
        ({"num_heads": 3}, r"`adapter` \(=\(3, 6, 3\)\) must have"),
    ],
)
def test_wrong_arguments_raise(arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        extraction(**arguments)
