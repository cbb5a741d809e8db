"""The CUDA C++ kernels against the definition in float64: the same source run on a CPU, or on a GPU if there is one."""

import ctypes
import os
import shutil
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests import VERIFY
from tests.ops.inducing_attention import stacks
from tests.ops.inducing_attention.stacks import Shape
from torchrec_mtl.errors import InputError
from torchrec_mtl.ops.inducing_attention import cuda
from torchrec_mtl.ops.inducing_attention.cuda import instances, launch
from torchrec_mtl.ops.inducing_attention.cuda.build import build, main

ON_GPU = torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"
PAPER = Shape(B=6, F=7, K=11, D=18, m=2, T=3)  # of the paper's dimension and heads; odd sizes, a few rows
SHAPES = [  # blocks that are not full, of rows, fields, dimensions and adapters' queries; every number of heads
    PAPER,
    pytest.param(Shape(B=3, F=3, K=37, D=9, m=1, T=1), marks=pytest.mark.verify),
    pytest.param(Shape(B=2, F=35, K=5, D=8, m=4, L=1, T=3), marks=pytest.mark.verify),
    pytest.param(Shape(B=1, F=1, K=1, D=8, m=1, T=1), marks=pytest.mark.verify),
    pytest.param(Shape(B=18, F=20, K=64, D=32, m=4, L=3, T=2), marks=pytest.mark.verify),
]


@pytest.fixture(autouse=True)
def emulated_in_poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uninitialised memory is NaN, or an index far out of range."""
    monkeypatch.setenv("TORCHREC_MTL_CUDA_EMULATED", "1")
    new_empty = torch.Tensor.new_empty

    def poisoned(*args: object, **kwargs: object) -> Tensor:
        x = new_empty(*args, **kwargs)
        return x.fill_(float("nan") if x.is_floating_point() else 1 << 30)

    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned)


def built(shape: Shape, dtype: torch.dtype = torch.float32) -> None:
    """Builds the kernels for a shape; on a GPU it skips where they are not built, because that takes minutes."""
    of = instances.instance(instances.precision_of(dtype), shape.m, shape.D, shape.F)
    if ON_GPU:
        if not instances.path(of).is_file():
            pytest.skip(f"the kernels are not built for {of}")
    elif shutil.which(os.environ.get("CXX") or "c++") is None:
        pytest.skip("there is no compiler")
    else:
        build(of, emulated=True)


def check(
    shape: Shape,
    dtype: torch.dtype = torch.float32,
    tolerance: float = 3e-6,
    active: float = 0.4,
    residual: str = "input",
    masked: bool = False,
) -> None:
    """The errors of the output and every gradient are at most twice those of the definition in the same precision."""
    built(shape, dtype)
    arguments = [x.to(dtype).double() for x in stacks.tensors(shape, active)]
    run, definition = (stacks.on_backend(name, shape.m, residual, masked=masked) for name in ("cuda", "reference"))
    expected = stacks.results(definition, arguments, torch.float64, DEVICE)
    eager = stacks.results(definition, arguments, dtype, DEVICE)
    for one, other, exact in zip(stacks.results(run, arguments, dtype, DEVICE), eager, expected, strict=True):
        assert stacks.error(one, exact) <= 2 * stacks.error(other, exact) + tolerance


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("masked", [False, True])
def test_the_stack_and_its_gradients_are_those_of_the_definition(shape: Shape, masked: bool) -> None:
    check(shape, masked=masked)


@pytest.mark.parametrize("residual", ["query", "none"])
@pytest.mark.parametrize("masked", [False, True])
def test_every_residual(residual: str, masked: bool) -> None:
    check(PAPER, residual=residual, masked=masked)


@pytest.mark.parametrize("active", [0.05, 0.25, 0.35, 0.45, 0.6, 0.9])  # one to eight blocks of rows
@pytest.mark.verify
def test_any_number_of_rows(active: float) -> None:
    check(PAPER._replace(K=64, B=8), active=active)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [Shape(B=4, F=6, K=10, D=16, m=2, T=1), Shape(B=17, F=26, K=64, D=32, m=2, L=4)])
@pytest.mark.verify
def test_in_half_precision_the_error_is_at_most_twice_that_of_the_definition(shape: Shape, dtype: torch.dtype) -> None:
    check(shape, dtype, 1e-4)


@pytest.fixture
def tf32() -> Iterator[None]:
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision(precision)


@pytest.mark.usefixtures("tf32")
@pytest.mark.verify
def test_tf32_is_rounded_to() -> None:
    built(PAPER)
    run, definition = (stacks.on_backend(name, PAPER.m) for name in ("cuda", "reference"))
    arguments = stacks.tensors(PAPER)
    found = stacks.results(run, arguments, torch.float32, DEVICE)
    nan = torch.tensor(0x7FFFFFFF, dtype=torch.int32).view(torch.float32)  # CUDA's
    inputs, *others = (x.float() for x in arguments)
    inputs[0, 0, 0] = nan
    assert run(*(x.to(DEVICE) for x in (inputs, *others)))[0].isnan().all()
    errors = [*map(stacks.error, found, stacks.results(definition, arguments, torch.float64, DEVICE))]
    assert 1e-5 < errors[0] < max(errors) < 2e-3


def test_a_nan_stays_in_its_sample() -> None:
    built(PAPER)
    arguments = [x.to(DEVICE, torch.float32) for x in stacks.tensors(PAPER)]
    run = stacks.on_backend("cuda", PAPER.m)
    expected = run(*arguments)
    arguments[0][3, 2, 17] = torch.nan
    actual = run(*arguments)
    assert actual[3].isnan().all()
    others = torch.arange(PAPER.B) != 3
    assert torch.equal(actual[others], expected[others])


def test_without_gradients_the_output_is_the_same() -> None:
    built(PAPER)
    arguments = [x.to(DEVICE, torch.float32) for x in stacks.tensors(PAPER)]
    run = stacks.on_backend("cuda", PAPER.m)
    expected = run(*(x.clone().requires_grad_() for x in arguments))
    with torch.no_grad():
        assert torch.equal(run(*arguments), expected)


def test_where_z_masks_and_selects_nothing_the_adapters_read_nothing() -> None:
    built(PAPER)
    inputs, selection, *weights = (x.float() for x in stacks.tensors(PAPER))
    run, definition = (stacks.on_backend(name, PAPER.m, masked=True) for name in ("cuda", "reference"))
    arguments = [x.to(DEVICE) for x in (inputs, 0 * selection, *weights)]
    torch.testing.assert_close(run(*arguments), definition(*arguments))


def test_tensors_that_are_not_contiguous_or_aligned() -> None:
    built(PAPER)
    arguments = [x.to(DEVICE, torch.float32) for x in stacks.tensors(PAPER)]
    run = stacks.on_backend("cuda", PAPER.m)
    shifted = [torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape) for x in arguments]
    strided = [torch.stack([x, x], -1)[..., 0] for x in arguments]
    for others in (shifted, strided):
        assert torch.equal(run(*others), run(*arguments))


def test_tafe_takes_it_by_name() -> None:
    built(Shape(B=3, F=3, K=3, D=18, m=2))
    stacks.assert_tafe_computes_the_equations_by("cuda", 18, DEVICE)


def test_an_empty_batch() -> None:
    shape = PAPER._replace(B=0)
    built(shape)
    run = stacks.on_backend("cuda", shape.m)
    arguments = stacks.tensors(shape)
    output, *gradients = stacks.results(run, arguments, torch.float32, DEVICE)
    assert output.shape == (0, 3, 18)
    assert all(torch.equal(x, torch.zeros(y.shape)) for x, y in zip(gradients, arguments, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_packed_weights_take_what_is_allocated(dtype: torch.dtype) -> None:
    if dtype != torch.float32 and not VERIFY:
        pytest.skip("another library to build")
    built(PAPER, dtype)
    inputs, selection, *weights = (x.to(DEVICE, dtype) for x in stacks.tensors(PAPER))
    of = launch.instance_of(instances.precision_of(dtype), inputs, weights, PAPER.m)
    kernels = launch.kernels_of(of, inputs.device)
    sizes = launch._sizes(inputs, selection, weights, ("query", "input"), False)
    assert kernels.packed_words(ctypes.byref(sizes)) == launch.packed_words(weights, PAPER.m, dtype)


def test_what_the_kernels_cannot_take_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    def refusal(shape: Shape, dtype: torch.dtype = torch.float32, **options: object) -> str:
        arguments = [x.to(DEVICE, dtype) for x in stacks.tensors(shape)]
        with pytest.raises(InputError, match="the backend 'cuda' cannot be used: ") as found:
            stacks.on_backend("cuda", shape.m, **options)(*arguments)
        return str(found.value).split("used: ")[1]

    for shape in (PAPER._replace(D=34), PAPER._replace(K=65), PAPER._replace(F=65)):
        sizes = f"{shape.D} dimensions, {shape.K} points and {shape.F} fields"
        most = "32 dimensions, 64 points and 64 fields"
        assert refusal(shape) == f"it takes up to {most}, not {sizes}; 'triton' takes more"
    assert refusal(PAPER._replace(m=3)) == "it takes 1, 2 or 4 heads, not 3; 'triton' takes any"
    assert refusal(PAPER, torch.float64) == "it computes in float32, bfloat16 and float16, not torch.float64"
    assert refusal(PAPER, z_grad="full") == "it has no gradient of z where z is 0, as `z_grad` (='full') asks for"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    build_it = "python -m torchrec_mtl.ops.inducing_attention.cuda.build --dim 6 --heads 2 --fields 60 --types float32"
    emulated = "" if ON_GPU else " --emulated"
    assert refusal(PAPER._replace(D=6, F=60)) == f"it is not built for these sizes: run `{build_it}{emulated}`"
    if not ON_GPU:
        monkeypatch.delenv("TORCHREC_MTL_CUDA_EMULATED")
        assert refusal(PAPER) == "it runs on a GPU, and the inputs are on 'cpu'"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5))
    found = cuda.why_not_sizes("cuda", 0, torch.float32, 2, 18, 64, 20)
    assert found == "it needs a GPU of compute capability 8.0, and this one has 7.5; 'sdpa' runs on any"


def test_an_empty_stack_is_refused() -> None:
    arguments = [x.to(DEVICE, torch.float32) for x in stacks.tensors(PAPER._replace(F=0))]
    with pytest.raises(InputError, match=r"`inputs` .* must not be empty"):
        stacks.on_backend("cuda")(*arguments)


@pytest.mark.parametrize(
    ("options", "compiler", "way_out"),
    [
        (["--emulated"], "no-such-compiler", "install GCC or Clang, or name one in the variable CXX"),
        (["--types", "float32"], "nvcc", "install CUDA's toolkit, 13.0"),
    ],
)
def test_without_a_compiler_the_build_says_so(options, compiler, way_out, monkeypatch, tmp_path, capsys) -> None:
    for name, value in {"CXX": "no-such-compiler", "PATH": "", "XDG_CACHE_HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit, match="2"):
        main(["--dim", "18", "--fields", "20", *options])
    assert capsys.readouterr().err == f"error: there is no compiler `{compiler}`: {way_out}\n"
    assert list(tmp_path.iterdir()) == []
