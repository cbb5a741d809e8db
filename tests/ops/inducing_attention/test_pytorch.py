"""The ways PyTorch runs the operation: compiled, exported, checkpointed, under autocast."""

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
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


class Masks(TorchFunctionMode):
    """Notes the types of queries and masks that PyTorch's fused attention gets."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.found.append((args[0].dtype, kwargs["attn_mask"]))
        return func(*args, **kwargs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("backend", "masked"), [("compact", False), ("compact", True), ("sdpa", True)])
def test_a_mask_has_the_type_of_the_queries(backend, masked, dtype):
    """On CUDA, PyTorch 2.11 lets cuDNN read a float32 mask beside bfloat16 queries, which it misreads by 75 %."""
    arguments = [x.to(dtype) for x in stacks.small_tensors()]
    arguments[1] = arguments[1].float()
    with Masks() as masks:
        stacks.on_backend(backend, masked=masked)(*arguments)
    assert len(masks.found) == 2
    assert all(mask is None or mask.dtype == query == dtype for query, mask in masks.found)
    assert masks.found[1][1] is not None
