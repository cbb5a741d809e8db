"""The ways PyTorch runs the operation: compiled, exported, checkpointed, under autocast."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.ops.inducing_attention import stacks
from tests.ops.inducing_attention.stacks import StackModule, small_tensors

pytestmark = pytest.mark.usefixtures("kernel")


@pytest.mark.parametrize(
    "backend",
    [
        "auto",
        "cpp",
        pytest.param("sdpa", marks=pytest.mark.verify),
        pytest.param("reference", marks=pytest.mark.verify),
    ],
)
def test_it_compiles_without_a_graph_break(backend):
    torch._dynamo.reset()
    compiled = torch.compile(stacks.on_backend(backend), fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (9, 17):
        arguments = small_tensors(batch=batch)
        results = (
            stacks.results(function, arguments, torch.float32) for function in (compiled, stacks.on_backend(backend))
        )
        for actual, eager in zip(*results, strict=True):
            torch.testing.assert_close(actual, eager, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("backend", "needs_the_kernel"), [("auto", False), ("cpp", True)])
def test_an_exported_program_needs_the_kernel_only_if_it_was_named(backend, needs_the_kernel):
    module, (inputs, selection, *_) = StackModule(backend), small_tensors()
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, (inputs, selection), dynamic_shapes=({0: batch}, {0: batch}))
    assert any("inducing_stack" in str(node.target) for node in program.graph.nodes) == needs_the_kernel
    for size in (1, 17):
        inputs, selection, *_ = small_tensors(batch=size)
        torch.testing.assert_close(program.module()(inputs, selection), module(inputs, selection), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["compact", "cpp", "sdpa"])
def test_recomputed_activations_give_the_same_gradients(backend):
    def recomputed(*x):
        return checkpoint(stacks.on_backend(backend), *x, use_reentrant=False)

    results = (
        stacks.results(function, small_tensors(), torch.float32)
        for function in (recomputed, stacks.on_backend(backend))
    )
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


@pytest.mark.parametrize("backend", ["auto", "cpp"])
def test_autocast_rounds_only_the_kernels_result(backend):
    arguments = small_tensors()
    expected = stacks.on_backend("cpp")(*arguments).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(stacks.on_backend(backend)(*arguments), expected)
