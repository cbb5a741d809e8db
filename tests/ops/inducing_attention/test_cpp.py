"""The C++ kernel's own properties; `test_equations` tests what it computes."""

import pytest
import torch

from tests.ops.inducing_attention import stacks
from tests.ops.inducing_attention.stacks import SMALL, small_tensors
from torchrec_mtl.errors import InputError

pytestmark = pytest.mark.usefixtures("kernel")

RUN = stacks.on_backend("cpp")


def test_opcheck():
    inputs, selection, *weights = (x.requires_grad_() for x in small_tensors(dtype=torch.float64))
    arguments = (inputs, selection, weights, SMALL.m, "input", True, True)
    torch.library.opcheck(torch.ops.torchrec_mtl.inducing_stack_cpp.default, arguments)
    inputs, selection, *weights = (x.detach() for x in (inputs, selection, *weights))
    upstream = torch.randn(SMALL.B, SMALL.T, SMALL.D, dtype=torch.float64)
    arguments = (inputs, selection, weights, upstream, SMALL.m, "input", True, True)
    torch.library.opcheck(torch.ops.torchrec_mtl.inducing_stack_cpp_backward.default, arguments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bits_do_not_depend_on_the_threads(dtype):
    arguments, threads = small_tensors(batch=1100, dtype=dtype), torch.get_num_threads()
    try:
        results = []
        for count in (1, 1, 2, 2, 3):
            torch.set_num_threads(count)
            results.append(stacks.results(RUN, arguments, dtype))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, y) for other in results[1:] for x, y in zip(results[0], other, strict=True))


def test_strides_do_not_matter():
    arguments = small_tensors(dtype=torch.float64)
    strided = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in arguments]
    results = (stacks.results(RUN, x) for x in (strided, arguments))
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))


def test_the_kernel_writes_all_that_it_returns(monkeypatch):
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True)  # then uninitialised memory is NaN
    try:
        assert torch.empty(3).isnan().all()
        for active in (0.0, 0.3, 1.0):
            results = stacks.results(RUN, small_tensors(active=active), torch.float32)
            assert not any(x.isnan().any() for x in results)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: torch.randn(9, 5, 7)}, r"`inputs` \(of shape \[9, 5, 7\]\) must be of shape \[9, 5, 6\]"),
        ({0: torch.randn(9, 0, 6)}, r"`inputs` \(of shape \[9, 0, 6\]\) must be \[B, F, D\], F at least 1"),
        ({1: torch.rand(8, 8)}, r"`selection` \(of shape \[8, 8\]\) must be of shape \[9, 8\]"),
        ({4: torch.randn(2, 6, 5)}, r"`weights` \(of shape \[2, 6, 5\]\) must be of shape \[2, 6, 6\]"),
        ({8: torch.randn(2, 6)}, r"points and indicators \(of shapes \[2, 8, 6\] and \[2, 6\]\) must be \[L, K, D\]"),
        ({9: torch.randn(2, 2, 6, 6).double()}, "all tensors must be on the CPU and of one type"),
    ],
)
def test_shapes_and_types_that_do_not_fit_are_refused(change, message):
    inputs, selection, *weights = arguments = small_tensors()
    for position, value in change.items():
        arguments[position] = value
    inputs, selection, *weights = arguments
    upstream = torch.randn(len(inputs), SMALL.T, SMALL.D)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.torchrec_mtl.inducing_stack_cpp(inputs, selection, weights, 2, "input", True, False)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.torchrec_mtl.inducing_stack_cpp_backward(
            inputs, selection, weights, upstream, 2, "input", True, False
        )
    with pytest.raises(InputError):
        RUN(*arguments)


def test_other_arguments_that_do_not_fit_are_refused():
    inputs, selection, *weights = small_tensors()
    run = torch.ops.torchrec_mtl.inducing_stack_cpp
    for arguments, message in {
        (4, "input"): r"`num_heads` \(=4\) must divide 6",
        (2, "sum"): r"`residual` \(=sum\) must be",
    }.items():
        with pytest.raises(RuntimeError, match=message):
            run(inputs, selection, weights, *arguments, True, False)
    with pytest.raises(RuntimeError, match="`weights` must be 12 tensors, not 11"):
        run(inputs, selection, weights[1:], 2, "input", True, False)
    with pytest.raises(RuntimeError, match="`masked` must be false without `gated`"):
        run(inputs, selection, weights, 2, "input", False, True)
    with pytest.raises(InputError, match=r"`num_heads` \(=4\) must divide the embedding dimension \(=6\)"):
        stacks.on_backend("cpp", heads=4)(*small_tensors())
