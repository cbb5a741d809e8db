"""TAFE's attention on a GPU, at sizes for which an interpreter is too slow.

``tests/ops/inducing_attention/test_{triton,cuda}*.py`` also run there, with compiled kernels instead of interpreted
ones. Those in CUDA C++ are skipped where they are not built.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.ops.inducing_attention import stacks
from tests.ops.inducing_attention.stacks import Shape
from torchrec_mtl.ops.inducing_attention import cuda, reference, triton
from torchrec_mtl.ops.inducing_attention.cuda import instances

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

PAPER = Shape(B=1024, F=20, K=64, D=18, m=2, L=4, T=2)
SHAPES = {
    "paper": PAPER,
    "mid": Shape(B=4096, F=26, K=64, D=32, m=2, L=4, T=2),
    "large": Shape(B=1024, F=128, K=64, D=64, m=4, L=4, T=4),
    "largest": Shape(B=40, F=100, K=256, D=128, m=8, L=2, T=5),
    "many fields": Shape(B=50, F=1000, K=33, D=24, m=3, L=2, T=1),
    "one sample": Shape(B=1, F=1, K=1, D=8, m=1, L=1, T=1),
}
PRECISIONS = {  # type, PyTorch's precision of float32 products, relative error that always passes
    "float32": (torch.float32, "highest", 3e-6),
    "tf32": (torch.float32, "high", 2e-3),
    "bfloat16": (torch.bfloat16, "highest", 1e-2),
    "float16": (torch.float16, "highest", 2e-3),
}


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Uninitialised memory is NaN."""
    precision = torch.get_float32_matmul_precision()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision(precision)


KERNELS = {"triton": triton.inducing_stack, "cuda": cuda.inducing_stack}


def functions(shape: Shape, kernels: str = "triton", dtype: torch.dtype = torch.float32):
    if kernels == "cuda":
        of = instances.instance(instances.precision_of(dtype), shape.m, shape.D, shape.F)
        if shape.m not in instances.HEADS or not instances.path(of).is_file():
            pytest.skip(f"the kernels are not built for {of}")
    both = (KERNELS[kernels], reference.inducing_stack)
    return [stacks.stack(function, shape.m, "input", "gated") for function in both]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("kernels", KERNELS)
def test_the_error_is_at_most_twice_the_definitions_in_the_same_precision(
    kernels: str, size: str, precision: str
) -> None:
    dtype, products, enough = PRECISIONS[precision]
    torch.set_float32_matmul_precision(products)
    arguments = [x.to(dtype).double() for x in stacks.tensors(SHAPES[size], active=0.25)]
    run, definition = functions(SHAPES[size], kernels, dtype)
    expected = stacks.results(definition, arguments, torch.float64, "cuda")
    eager = stacks.results(definition, arguments, dtype, "cuda")
    for one, other, exact in zip(stacks.results(run, arguments, dtype, "cuda"), eager, expected, strict=True):
        assert stacks.error(one, exact) <= max(2 * stacks.error(other, exact), enough)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("backend", "masked"), [("sdpa", False), ("sdpa", True), ("compact", False), ("compact", True)]
)
def test_pytorchs_fused_attention_is_as_exact_as_the_definition(backend: str, masked: bool, precision: str) -> None:
    dtype, products, enough = PRECISIONS[precision]
    torch.set_float32_matmul_precision(products)
    arguments = [x.to(dtype).double() for x in stacks.tensors(SHAPES["mid"], active=0.25)]
    run, definition = (stacks.on_backend(name, SHAPES["mid"].m, masked=masked) for name in (backend, "reference"))
    expected = stacks.results(definition, arguments, torch.float64, "cuda")
    eager = stacks.results(definition, arguments, dtype, "cuda")
    for one, other, exact in zip(stacks.results(run, arguments, dtype, "cuda"), eager, expected, strict=True):
        assert stacks.error(one, exact) <= max(2 * stacks.error(other, exact), enough)


@pytest.mark.parametrize(("kernels", "size"), [("triton", "paper"), ("triton", "large"), ("cuda", "paper")])
def test_two_runs_have_the_same_bits(kernels: str, size: str) -> None:
    arguments = stacks.tensors(SHAPES[size])
    run, _ = functions(SHAPES[size], kernels)
    first, second = (stacks.results(run, arguments, torch.float32, "cuda") for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize("kernels", KERNELS)
def test_a_cuda_graph_replays_it(kernels: str) -> None:
    arguments = [x.to("cuda", torch.float32).requires_grad_() for x in stacks.tensors(PAPER)]
    run, _ = functions(PAPER, kernels)

    def step() -> list[Tensor]:
        output = run(*arguments)
        return [output, *torch.autograd.grad(output.square().sum(), arguments)]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()  # compiles
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        arguments[0].copy_(torch.randn_like(arguments[0]))
        arguments[1].copy_(arguments[1].flip(0))
    graph.replay()
    for one, other in zip(captured, step(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kernels", KERNELS)
def test_inductor_compiles_around_it(kernels: str) -> None:
    arguments = [x.to("cuda", torch.float32).requires_grad_() for x in stacks.tensors(PAPER)]
    run, _ = functions(PAPER, kernels)
    compiled = torch.compile(run, fullgraph=True)
    for one, other in zip(_with_gradients(compiled, arguments), _with_gradients(run, arguments), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def _with_gradients(function, arguments: list[Tensor]) -> list[Tensor]:
    output = function(*arguments)
    return [output, *torch.autograd.grad(output.square().mean(), arguments)]
