"""The C++ kernel against the reference, and the ways PyTorch runs it."""

import pytest
import torch

from tests.ops.attention.inputs import SelfAttention, arguments
from torchrec_mtl import ops
from torchrec_mtl.errors import InputError
from torchrec_mtl.ops.attention import cpp

pytestmark = pytest.mark.usefixtures("kernel")

SHAPES = [  # B N M D m
    (0, 5, 5, 8, 1),
    (1, 1, 1, 1, 1),
    (15, 2, 5, 3, 1),
    (16, 5, 2, 10, 2),
    (17, 34, 34, 8, 1),
    (100, 34, 34, 16, 2),
    (29, 65, 34, 18, 1),
    (9, 34, 65, 36, 2),
    (2, 300, 5, 5, 1),
    (2, 1, 300, 2, 2),
    (5, 300, 300, 6, 2),
]


def output_and_gradients(backend, tensors, num_heads):
    output = ops.attention(*tensors, num_heads, backend)
    upstream = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).sin().view_as(output)
    return output, *torch.autograd.grad(output, tensors, upstream.to(output))


@pytest.mark.parametrize("scale", [1, 50])
@pytest.mark.parametrize(("batch", "rows", "inputs", "dim", "heads"), SHAPES)
def test_the_kernel_is_the_reference(batch, rows, inputs, dim, heads, scale):
    tensors = arguments(batch, rows, inputs, dim, scale=scale)
    expected = output_and_gradients("reference", tensors, heads)
    for actual, reference in zip(output_and_gradients("cpp", tensors, heads), expected, strict=True):
        atol = 1e-12 * max(1, float(reference.detach().abs().max())) if reference.numel() else 0
        torch.testing.assert_close(actual, reference, rtol=1e-10, atol=atol)


@pytest.mark.parametrize("scale", [1, 50])
@pytest.mark.parametrize(("batch", "rows", "inputs", "dim", "heads"), SHAPES[3:])
def test_in_float32_it_is_as_accurate_as_the_reference(batch, rows, inputs, dim, heads, scale):
    """Over many draws if they are small: the reference's error of one is a matter of luck, and of the processor."""
    squares = []
    for seed in range(min(200, max(4, 2**17 // (batch * rows * inputs)))):
        double, single = (arguments(batch, rows, inputs, dim, x, scale, seed) for x in (torch.float64, torch.float32))
        exact, plain = (output_and_gradients("reference", tensors, heads) for tensors in (double, single))
        found = zip(exact, plain, output_and_gradients("cpp", single, heads), strict=True)
        squares.append([[x.norm().item() for x in (c.double() - a, b.double() - a, a)] for a, b, c in found])
    error, allowed, size = torch.tensor(squares).square().mean(0).sqrt().unbind(1)
    assert (error <= 2 * allowed + 6e-7 * size).all()  # the last term: five times the precision of float32


def test_gradcheck():
    assert torch.autograd.gradcheck(lambda *x: cpp.attention(*x, 2), arguments(2, 3, 4, 6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bits_do_not_depend_on_the_threads(dtype):
    tensors, threads = arguments(1100, 7, 5, 8, dtype), torch.get_num_threads()
    try:
        results = []
        for count in (1, 1, 2, 2, 3):
            torch.set_num_threads(count)
            results.append(output_and_gradients("cpp", tensors, 1))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, y) for other in results[1:] for x, y in zip(results[0], other, strict=True))


def test_a_nan_stays_in_its_sample():
    queries, inputs, *weights = (x.detach() for x in arguments(19, 4, 5, 8, torch.float32))
    expected = ops.attention(queries, inputs, *weights, 2, "cpp")
    inputs[9, 2, 3] = torch.nan
    actual = ops.attention(queries, inputs, *weights, 2, "cpp")
    assert actual[9].isnan().all()
    others = torch.arange(19) != 9
    assert torch.equal(actual[others], expected[others])


def test_strides_do_not_matter():
    queries, inputs, *weights = (x.detach() for x in arguments(9, 4, 5, 8))
    strided = [queries.transpose(0, 2).contiguous().transpose(0, 2), inputs[:1].expand(9, 5, 8)]
    strided = [x.requires_grad_() for x in (*strided, *(weight.T for weight in weights))]
    results = (output_and_gradients(backend, strided, 2) for backend in ("cpp", "reference"))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


def test_opcheck():
    tensors = arguments(5, 3, 4, 6)
    torch.library.opcheck(torch.ops.torchrec_mtl.small_attention.default, (*tensors, 2))
    read = [x.detach() for x in (*tensors, tensors[0])]
    torch.library.opcheck(torch.ops.torchrec_mtl.small_attention_backward.default, (*read, 2))


@pytest.mark.parametrize("backend", ["auto", "cpp"])
def test_it_compiles_without_a_graph_break(backend):
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *x: ops.attention(*x, 2, backend), fullgraph=True, backend="aot_eager", dynamic=True
    )
    for batch in (9, 17):
        tensors = arguments(batch, 3, 4, 8)
        output = compiled(*tensors)
        gradients = torch.autograd.grad(output.square().sum(), tensors)
        expected = ops.attention(*tensors, 2, "cpp")
        assert torch.equal(output, expected)
        for actual, eager in zip(gradients, torch.autograd.grad(expected.square().sum(), tensors), strict=True):
            torch.testing.assert_close(actual, eager)


@pytest.mark.parametrize(("backend", "needs_the_kernel"), [("auto", False), ("cpp", True)])
def test_an_exported_program_needs_the_kernel_only_if_it_was_named(backend, needs_the_kernel):
    module = SelfAttention(backend)
    dynamic = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(module, (torch.randn(5, 4, 8),), dynamic_shapes=dynamic)
    assert any("small_attention" in str(node.target) for node in program.graph.nodes) == needs_the_kernel
    x = torch.randn(9, 4, 8)
    torch.testing.assert_close(program.module()(x), module(x))


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_16_bits_are_computed_in_float32_and_only_the_results_are_rounded(dtype, rounding):
    tensors = arguments(33, 23, 20, 16, dtype)
    exact = output_and_gradients("reference", [x.detach().double().requires_grad_() for x in tensors], 2)
    for chosen in ("auto", "cpp"):
        for actual, expected in zip(output_and_gradients(chosen, tensors, 2), exact, strict=True):
            assert actual.dtype == dtype
            assert (actual.double() - expected).norm() <= 2 * rounding * expected.norm()


def test_autocast_rounds_only_the_result():
    tensors = arguments(33, 23, 20, 16, torch.float32)
    expected = cpp.attention(*tensors).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        for backend in ("auto", "cpp"):
            assert torch.equal(ops.attention(*tensors, backend=backend), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.randn(9, 8)}, r"`queries` and `inputs` must be \[B, N, D\] and \[B, M, D\]"),
        ({1: torch.randn(3, 4, 8)}, r"`inputs` \(of shape \[3, 4, 8\]\) must be of shape \[9, 4, 8\]"),
        ({1: torch.randn(9, 0, 8)}, r"`inputs` \(of shape \[9, 0, 8\]\) must have at least one row"),
        ({3: torch.randn(8, 4)}, r"`weight` \(of shape \[8, 4\]\) must be of shape \[8, 8\]"),
        ({5: 3}, r"`num_heads` \(=3\) must divide 8"),
        ({4: torch.randn(8, 8).double()}, "all tensors must be on the CPU and of one type"),
        (
            dict.fromkeys(range(5), torch.ones(2, 2, 2).int()) | {i: torch.ones(2, 2).int() for i in (2, 3, 4)},
            "float64",
        ),
    ],
)
def test_shapes_and_types_that_do_not_fit_are_refused(change, message):
    given = [*arguments(9, 3, 4, 8, torch.float32), 2]
    for position, value in change.items():
        given[position] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.torchrec_mtl.small_attention(*given)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.torchrec_mtl.small_attention_backward(*given[:5], given[0], given[5])
    with pytest.raises(InputError):
        ops.attention(*given, backend="cpp")


def test_the_gradient_must_be_of_the_outputs_shape():
    given = [x.detach() for x in arguments(9, 3, 4, 8)]
    with pytest.raises(RuntimeError, match=r"`upstream` \(of shape \[9, 4, 8\]\) must be of shape \[9, 3, 8\]"):
        torch.ops.torchrec_mtl.small_attention_backward(*given, given[1], 2)
