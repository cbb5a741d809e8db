"""The choice of a path, what is refused, and the ways PyTorch runs the operation."""

import importlib

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.ops import stacks
from tests.ops.stacks import Shape
from torchrec_mtl import ops
from torchrec_mtl.errors import InputError
from torchrec_mtl.ops import AdapterWeights, GeneratorWeights, InducingLayer, InducingStack, backends
from torchrec_mtl.ops.small_attention import library

FRONT_DOOR = importlib.import_module("torchrec_mtl.ops.inducing_attention")
SHAPE = Shape(B=9, F=5, K=8, D=6, m=2)


def tensors(shape=SHAPE, dtype=torch.float32, active=0.4):
    return [x.to(dtype) for x in stacks.tensors(shape, active)]


def run(inputs, selection, *weights, num_heads=SHAPE.m, backend="auto", **arguments):
    layers, adapters = GeneratorWeights(*weights[:6]), AdapterWeights(*weights[6:])
    return ops.inducing_stack(inputs, selection, InducingStack(layers, adapters, num_heads, **arguments), backend)


class Stack(torch.nn.Module):
    def __init__(self, backend, dtype=torch.float32):
        super().__init__()
        self.backend = backend
        self.weights = torch.nn.ParameterList(tensors(dtype=dtype)[2:])

    def forward(self, inputs, selection):
        return run(inputs, selection, *self.weights, backend=self.backend)


@pytest.mark.usefixtures("kernel")
def test_opcheck():
    inputs, selection, *weights = (x.requires_grad_() for x in tensors(dtype=torch.float64))
    arguments = (inputs, selection, weights, SHAPE.m, "input", True)
    torch.library.opcheck(torch.ops.torchrec_mtl.inducing_stack_cpp.default, arguments)
    inputs, selection, *weights = (x.detach() for x in (inputs, selection, *weights))
    upstream = torch.randn(SHAPE.B, SHAPE.T, SHAPE.D, dtype=torch.float64)
    arguments = (inputs, selection, weights, upstream, SHAPE.m, "input", True)
    torch.library.opcheck(torch.ops.torchrec_mtl.inducing_stack_cpp_backward.default, arguments)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bits_do_not_depend_on_the_threads(dtype):
    arguments, threads = tensors(SHAPE._replace(B=1100), dtype), torch.get_num_threads()
    function = lambda *x: run(*x, backend="cpp")  # noqa: E731
    try:
        results = []
        for count in (1, 1, 2, 2, 3):
            torch.set_num_threads(count)
            results.append(stacks.results(function, arguments, dtype, "cpu"))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, y) for other in results[1:] for x, y in zip(results[0], other, strict=True))


@pytest.mark.usefixtures("kernel")
def test_strides_do_not_matter():
    arguments = tensors(dtype=torch.float64)
    strided = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in arguments]
    results = (stacks.results(lambda *x: run(*x, backend="cpp"), x, torch.float64, "cpu") for x in (strided, arguments))
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


@pytest.mark.usefixtures("kernel")
def test_all_that_the_kernel_gives_back_it_has_written(monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)  # then memory that nobody has written is not a number
    try:
        assert torch.empty(3).isnan().all()
        for active in (0.0, 0.3, 1.0):
            results = stacks.results(lambda *x: run(*x, backend="cpp"), tensors(active=active), torch.float32, "cpu")
            assert not any(x.isnan().any() for x in results)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("backend", ["auto", "reference", "sdpa", "cpp"])
def test_it_compiles_without_a_break(backend):
    torch._dynamo.reset()
    compiled = torch.compile(lambda *x: run(*x, backend=backend), fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (9, 17):
        arguments = tensors(SHAPE._replace(B=batch))
        results = (
            stacks.results(function, arguments, torch.float32, "cpu")
            for function in (compiled, lambda *x: run(*x, backend=backend))
        )
        for actual, eager in zip(*results, strict=True):
            torch.testing.assert_close(actual, eager, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(("backend", "needs_the_kernel"), [("auto", False), ("cpp", True)])
def test_an_exported_program_needs_the_kernel_only_by_name(backend, needs_the_kernel):
    module, (inputs, selection, *_) = Stack(backend), tensors()
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, (inputs, selection), dynamic_shapes=({0: batch}, {0: batch}))
    assert any("inducing_stack" in str(node.target) for node in program.graph.nodes) == needs_the_kernel
    for size in (1, 17):
        inputs, selection, *_ = tensors(SHAPE._replace(B=size))
        torch.testing.assert_close(program.module()(inputs, selection), module(inputs, selection), rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("backend", ["compact", "cpp", "sdpa"])
def test_recomputed_activations_give_the_same_gradients(backend):
    def recomputed(*x):
        return checkpoint(lambda *y: run(*y, backend=backend), *x, use_reentrant=False)

    results = (
        stacks.results(function, tensors(), torch.float32, "cpu")
        for function in (recomputed, lambda *x: run(*x, backend=backend))
    )
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


@pytest.mark.usefixtures("kernel")
def test_under_autocast_auto_leaves_the_kernel_aside():
    arguments = tensors()
    expected = run(*arguments, backend="cpp")
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(run(*arguments).float(), expected, rtol=0.1, atol=0.1)
        assert not torch.equal(run(*arguments), expected)
        assert torch.equal(run(*arguments, backend="cpp"), expected)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.randn(9, 5, 7)}, r"`inputs` \(of shape \[9, 5, 7\]\) must be \[B, F, 6\]"),
        ({0: torch.randn(9, 0, 6)}, "F at least 1"),
        ({1: torch.rand(8, 8)}, r"`selection` \(of shape \[8, 8\]\) must be \[9, 8\]"),
        ({4: torch.randn(2, 6, 5)}, r"the weights \(of shapes .*\(2, 6, 5\).* must be \[\(2, 8, 6\), \(2, 6, 6\)"),
        ({8: torch.randn(2, 6)}, r"points and indicators \(of shapes \[\[2, 8, 6\], \[2, 6\]\]\) must be \[L, K, D\]"),
        ({9: torch.randn(2, 2, 6, 6).double()}, "float32 or float64, not a mixture"),
    ],
)
def test_what_does_not_fit_the_kernel_is_refused(change, message):
    arguments = tensors()
    for position, value in change.items():
        arguments[position] = value
    with pytest.raises(InputError, match=message):
        run(*arguments, backend="cpp")
    with pytest.raises(InputError, match=r"`num_heads` \(=4\) must divide the embedding dimension \(=6\)"):
        run(*tensors(), num_heads=4, backend="cpp")


# ---- the choice, with or without a kernel ------------------------------------------------------------------------


@pytest.fixture
def chosen(monkeypatch):
    """The paths that were called, as if there were a kernel."""
    calls = []
    monkeypatch.setattr(library, "load", lambda: object())
    for name in ("reference", "sdpa", "compact", "cpp"):
        path = getattr(FRONT_DOOR, name)
        monkeypatch.setattr(path, "inducing_stack", lambda *_, name=name: calls.append(name))
    return calls


@pytest.mark.parametrize(
    ("shape", "active", "z_grad", "expected"),
    [
        (Shape(B=64, F=20, K=64, D=18, m=2, L=4), 1.0, "gated", "cpp"),
        (Shape(B=64, F=20, K=64, D=18, m=2, L=4), 0.25, "full", "cpp"),
        (Shape(B=64, F=20, K=64, D=128, m=2), 0.4, "gated", "compact"),
        (Shape(B=64, F=20, K=64, D=128, m=2), 0.25, "full", "sdpa"),
        (Shape(B=64, F=20, K=64, D=128, m=2), 0.9, "gated", "sdpa"),
        (Shape(B=64, F=1000, K=16, D=8, m=1), 0.9, "gated", "sdpa"),
        (Shape(B=0, F=5, K=4, D=8, m=1), 0.9, "gated", "cpp"),
    ],
)
def test_auto_takes_what_is_fastest(chosen, shape, active, z_grad, expected):
    arguments = stacks.tensors(shape)
    arguments[1] = (torch.rand(shape.B, shape.K) < active).double()
    run(*arguments, z_grad=z_grad)
    assert chosen == [expected]


@pytest.mark.parametrize(("dtype", "device"), [(torch.bfloat16, "cpu"), (torch.float32, "meta")])
def test_what_the_kernel_cannot_take(chosen, dtype, device, monkeypatch):
    arguments = [x.to(device) for x in tensors(dtype=dtype, active=1.0)]
    run(*arguments)
    assert chosen == ["sdpa"]
    monkeypatch.undo()
    with pytest.raises(InputError, match="the inducing-attention kernel cannot be used: it "):
        run(*arguments, backend="cpp")


def test_without_a_kernel_auto_says_so_once_and_a_name_is_refused(monkeypatch, caplog):
    monkeypatch.setattr(library, "load", lambda: None)
    backends._log_once.cache_clear()
    caplog.set_level("INFO")
    arguments = tensors(SHAPE._replace(B=1), active=0.0)
    for _ in range(2):
        assert torch.equal(run(*arguments), run(*arguments, backend="compact"))
    (message,) = caplog.messages
    assert message.startswith("inducing_attention: backend 'compact', because enough points are at 0, and the C++")
    with pytest.raises(InputError, match=r"not built: run `python -m torchrec_mtl\.ops\.small_attention\.build`"):
        run(*arguments, backend="cpp")
    inputs, selection, *weights = arguments
    with pytest.raises(InputError, match="not built"):  # a program saved elsewhere
        torch.ops.torchrec_mtl.inducing_stack_cpp(inputs, selection, weights, 2, "input", True)


def test_the_environment_stands_for_auto_alone(chosen, monkeypatch):
    monkeypatch.setenv("TORCHREC_MTL_INDUCING_ATTENTION", "reference")
    run(*tensors())
    run(*tensors(), backend="compact")
    assert chosen == ["reference", "compact"]
    monkeypatch.setenv("TORCHREC_MTL_INDUCING_ATTENTION", "c++")
    with pytest.raises(InputError, match=r"\$TORCHREC_MTL_INDUCING_ATTENTION \(='c\+\+'\) must be one of"):
        run(*tensors())


def test_a_traced_module_chooses_when_it_runs(chosen):
    traced = torch.fx.symbolic_trace(Stack("auto"))
    assert chosen == []
    traced(*tensors()[:2])
    assert chosen == ["cpp"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "triton2"}, r"`backend` \(='triton2'\) must be one of"),
        ({"residual": "sum"}, r"`residual` \(='sum'\) must be 'input', 'query' or 'none'"),
        ({"z_grad": "half"}, r"`z_grad` \(='half'\) must be 'gated' or 'full'"),
        ({"z_grad": "full", "backend": "compact"}, r"'compact' does not compute the gradient .* \(='full'\) asks for"),
    ],
)
def test_what_is_no_argument_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        run(*tensors(), **arguments)


@pytest.mark.parametrize("backend", ["compact", "cpp"])
def test_one_layer_has_no_path_for_stacks(backend):
    inputs, selection, *weights = tensors()
    layer = GeneratorWeights(*weights[:6]).layers()[0]
    with pytest.raises(InputError, match=f"'{backend}' is for a stack whose layers share one selection"):
        ops.inducing_layer(inputs, selection, InducingLayer(layer, 2, "query"), backend)
