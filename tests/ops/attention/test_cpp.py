import importlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from torchrec_mtl import ops
from torchrec_mtl.errors import InputError
from torchrec_mtl.ops import backends
from torchrec_mtl.ops.small_attention import library, small_attention
from torchrec_mtl.ops.small_attention.build import build

FRONT_DOOR = importlib.import_module("torchrec_mtl.ops.attention")  # `ops.attention` is the function
BUILD = [sys.executable, "-m", "torchrec_mtl.ops.small_attention.build"]
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


def arguments(batch, rows, inputs, dim, dtype=torch.float64, scale=1.0):
    torch.manual_seed(0)
    sets = [torch.randn(batch, count, dim, dtype=torch.float64) for count in (rows, inputs)]
    weights = [torch.randn(dim, dim, dtype=torch.float64) / dim**0.5 for _ in range(3)]
    tensors = [sets[0] * scale, sets[1], *weights]
    return [x.to(dtype).requires_grad_() for x in tensors]


def output_and_gradients(backend, tensors, num_heads):
    output = ops.attention(*tensors, num_heads, backend)
    upstream = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).sin().view_as(output)
    return output, *torch.autograd.grad(output, tensors, upstream.to(output))


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("scale", [1, 50])
@pytest.mark.parametrize(("batch", "rows", "inputs", "dim", "heads"), SHAPES)
def test_the_kernel_is_the_reference(batch, rows, inputs, dim, heads, scale):
    tensors = arguments(batch, rows, inputs, dim, scale=scale)
    expected = output_and_gradients("reference", tensors, heads)
    for actual, reference in zip(output_and_gradients("cpp", tensors, heads), expected, strict=True):
        atol = 1e-12 * max(1, float(reference.detach().abs().max())) if reference.numel() else 0
        torch.testing.assert_close(actual, reference, rtol=1e-10, atol=atol)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("scale", [1, 50])
@pytest.mark.parametrize(("batch", "rows", "inputs", "dim", "heads"), SHAPES[3:])
def test_in_float32_it_is_as_exact_as_the_reference(batch, rows, inputs, dim, heads, scale):
    exact = output_and_gradients("reference", arguments(batch, rows, inputs, dim, scale=scale), heads)
    single = arguments(batch, rows, inputs, dim, torch.float32, scale)
    plain, fused = (output_and_gradients(backend, single, heads) for backend in ("reference", "cpp"))
    for definition, reference, actual in zip(exact, plain, fused, strict=True):
        error, allowed = ((x.double() - definition).norm() for x in (actual, reference))
        assert error <= 2 * allowed + 6e-7 * definition.norm()  # the last: five times the type's precision


@pytest.mark.usefixtures("kernel")
def test_gradcheck():
    assert torch.autograd.gradcheck(lambda *x: small_attention(*x, 2), arguments(2, 3, 4, 6))


@pytest.mark.usefixtures("kernel")
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


@pytest.mark.usefixtures("kernel")
def test_a_sample_has_a_lane_of_its_own():
    queries, inputs, *weights = (x.detach() for x in arguments(19, 4, 5, 8, torch.float32))
    expected = ops.attention(queries, inputs, *weights, 2, "cpp")
    inputs[9, 2, 3] = torch.nan
    actual = ops.attention(queries, inputs, *weights, 2, "cpp")
    assert actual[9].isnan().all()
    others = torch.arange(19) != 9
    assert torch.equal(actual[others], expected[others])


@pytest.mark.usefixtures("kernel")
def test_strides_do_not_matter():
    queries, inputs, *weights = (x.detach() for x in arguments(9, 4, 5, 8))
    strided = [queries.transpose(0, 2).contiguous().transpose(0, 2), inputs[:1].expand(9, 5, 8)]
    strided = [x.requires_grad_() for x in (*strided, *(weight.T for weight in weights))]
    results = (output_and_gradients(backend, strided, 2) for backend in ("cpp", "reference"))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("kernel")
def test_opcheck():
    tensors = arguments(5, 3, 4, 6)
    torch.library.opcheck(torch.ops.torchrec_mtl.small_attention.default, (*tensors, 2))
    read = [x.detach() for x in (*tensors, tensors[0])]
    torch.library.opcheck(torch.ops.torchrec_mtl.small_attention_backward.default, (*read, 2))


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("backend", ["auto", "cpp"])
def test_it_compiles_without_a_break(backend):
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


class SelfAttention(torch.nn.Module):
    def __init__(self, backend):
        super().__init__()
        self.backend = backend
        self.query, self.key, self.value = (torch.nn.Parameter(torch.randn(8, 8)) for _ in range(3))

    def forward(self, x):
        return ops.attention(x, x, self.query, self.key, self.value, 2, self.backend)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(("backend", "needs_the_kernel"), [("auto", False), ("cpp", True)])
def test_an_exported_program_needs_the_kernel_only_by_name(backend, needs_the_kernel):
    module = SelfAttention(backend)
    dynamic = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(module, (torch.randn(5, 4, 8),), dynamic_shapes=dynamic)
    assert any("small_attention" in str(node.target) for node in program.graph.nodes) == needs_the_kernel
    x = torch.randn(9, 4, 8)
    torch.testing.assert_close(program.module()(x), module(x))


@pytest.mark.usefixtures("kernel")
def test_under_autocast_auto_leaves_it_aside():
    tensors = arguments(9, 3, 4, 8, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.attention(*tensors).dtype == torch.bfloat16
        assert torch.equal(ops.attention(*tensors, 1, "cpp"), small_attention(*tensors))


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({1: torch.randn(3, 4, 8)}, r"`inputs` \(of shape \[3, 4, 8\]\) must be \[9, M, 8\]"),
        ({1: torch.randn(9, 0, 8)}, "M at least 1"),
        ({3: torch.randn(8, 4)}, r"must be \[8, 8\]"),
        ({5: 3}, r"`num_heads` \(=3\) must divide the embedding dimension \(=8\)"),
        ({4: torch.randn(8, 8).double()}, "float32 or float64, not a mixture"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    given = [*arguments(9, 3, 4, 8, torch.float32), 2]
    for position, value in change.items():
        given[position] = value
    with pytest.raises(InputError, match=message):
        small_attention(*given)


# ---- the choice, with or without a kernel ------------------------------------------------------------------------


@pytest.fixture
def chosen(monkeypatch):
    """The backends that were called, as if there were a kernel."""
    calls = []
    monkeypatch.setattr(library, "load", lambda: object())
    monkeypatch.setattr(FRONT_DOOR, "small_attention", lambda *_: calls.append("cpp"))
    monkeypatch.setattr(FRONT_DOOR, "_reference", lambda *_: calls.append("reference"))
    return calls


@pytest.mark.parametrize(
    ("shape", "heads", "expected"),
    [
        ((2048, 34, 34, 8), 1, "cpp"),
        ((1024, 20, 20, 18), 2, "cpp"),
        ((1, 34, 34, 8), 1, "cpp"),
        ((256, 200, 200, 8), 1, "cpp"),
        ((7, 200, 200, 8), 1, "reference"),  # most lanes would be empty
        ((256, 200, 200, 16), 1, "reference"),
        ((2048, 34, 34, 32), 1, "reference"),
        ((2048, 34, 34, 32), 2, "cpp"),
        ((16, 3, 0, 8), 1, "reference"),
    ],
)
def test_auto_takes_the_kernel_where_it_is_faster(chosen, shape, heads, expected):
    ops.attention(*(x.detach() for x in arguments(*shape)), heads)
    assert chosen == [expected]


@pytest.mark.parametrize(("dtype", "device"), [(torch.bfloat16, "cpu"), (torch.float32, "meta")])
def test_what_the_kernel_cannot_take(chosen, dtype, device, monkeypatch):
    tensors = [x.to(device) for x in arguments(9, 3, 4, 8, dtype)]
    ops.attention(*tensors)
    assert chosen == ["reference"]
    monkeypatch.setattr(FRONT_DOOR, "small_attention", small_attention)
    with pytest.raises(InputError, match="the attention kernel cannot be used: it "):
        ops.attention(*tensors, backend="cpp")


def test_without_a_kernel_auto_says_so_once_and_a_name_is_refused(monkeypatch, caplog):
    monkeypatch.setattr(library, "load", lambda: None)
    backends._log_once.cache_clear()
    caplog.set_level("INFO")
    tensors = arguments(9, 3, 4, 8)
    for _ in range(2):
        assert torch.equal(ops.attention(*tensors), ops.attention(*tensors, backend="reference"))
    (message,) = caplog.messages
    assert message.startswith("attention: backend 'reference', because the C++ kernel cannot be used: it is not built")
    with pytest.raises(InputError, match=r"not built: run `python -m torchrec_mtl\.ops\.small_attention\.build`"):
        ops.attention(*tensors, backend="cpp")
    with pytest.raises(InputError, match="not built"):  # a program saved elsewhere
        torch.ops.torchrec_mtl.small_attention(*tensors, 1)


def test_the_environment_stands_for_auto_alone(chosen, monkeypatch):
    tensors = arguments(9, 3, 4, 8)
    monkeypatch.setenv("TORCHREC_MTL_ATTENTION", "reference")
    ops.attention(*tensors)
    ops.attention(*tensors, backend="cpp")
    assert chosen == ["reference", "cpp"]
    monkeypatch.setenv("TORCHREC_MTL_ATTENTION", "c++")
    with pytest.raises(InputError, match=r"\$TORCHREC_MTL_ATTENTION \(='c\+\+'\) must be one of"):
        ops.attention(*tensors)
    with pytest.raises(InputError, match=r"`backend` \(='C'\) must be one of"):
        ops.attention(*tensors, backend="C")


@pytest.mark.parametrize("backend", ["auto", "cpp"])
def test_a_traced_module_chooses_when_it_runs(chosen, backend):
    traced = torch.fx.symbolic_trace(SelfAttention(backend))
    assert chosen == []
    traced(torch.randn(9, 4, 8))
    assert chosen == ["cpp"]


# ---- the build ---------------------------------------------------------------------------------------------------


def test_without_a_compiler_the_build_says_so(tmp_path):
    environment = {**os.environ, "CXX": "no-such-compiler", "XDG_CACHE_HOME": str(tmp_path)}
    result = subprocess.run(BUILD, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == (
        "error: there is no compiler `no-such-compiler`: install GCC or Clang, or name one in the variable CXX"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """A compiler that takes its time; returns how to give its last command, and the folder of the library."""
    script = tmp_path / "c++"
    monkeypatch.setenv("CXX", str(script))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def set_command(command):
        script.write_text(f'#!/bin/sh\nfor output; do :; done\necho half > "$output"\nsleep 0.2\n{command}\n')
        script.chmod(0o755)

    return set_command, tmp_path / "cache" / "torchrec_mtl"


def test_builders_at_once_publish_whole_libraries(compiler):
    set_command, folder = compiler
    set_command('echo whole > "$output"')
    with ThreadPoolExecutor(3) as pool:
        paths = list(pool.map(lambda _: build(), range(3)))
    assert {path.read_text() for path in paths} == {"whole\n"}
    assert list(folder.iterdir()) == [paths[0]]


def test_a_failed_build_leaves_nothing(compiler):
    set_command, folder = compiler
    set_command("echo 'kernel.cpp:1: no' >&2; exit 1")
    with pytest.raises(InputError, match=r"failed:\nkernel\.cpp:1: no"):
        build()
    assert list(folder.iterdir()) == []
