"""The Triton kernels as PyTorch operators: autograd, compile, export, autocast, checkpoints; launches and bytes."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from tests.ops.inducing_attention import stacks
from tests.ops.inducing_attention.stacks import Shape
from torchrec_mtl.ops.inducing_attention import triton

pytest.importorskip("triton")

from tests.ops.inducing_attention import interpreting
from torchrec_mtl.ops.inducing_attention.triton import launch, operators

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPE = Shape(B=3, F=3, K=4, D=8, m=1, L=2, T=1)
RUN = stacks.stack(triton.inducing_stack, SHAPE.m, "input", "gated")


@pytest.fixture(autouse=True)
def quick_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    interpreting.patch_once(monkeypatch)


@pytest.fixture
def leaves() -> list[Tensor]:
    return [x.to(DEVICE, torch.float32).requires_grad_() for x in stacks.tensors(SHAPE)]


def gradients(output: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(output.float().square().sum(), leaves))


def folded(shape: Shape, device: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Tensors as the operator takes them, with every point selected."""
    B, F, K, D, m, L, T = shape  # noqa: N806
    sizes = [(B, F, D), (B, K), (L, m, K, D), (L, m, D, D), (L, K, D), (L, D), (L, D)]
    sizes += [(L, T, m, D), (L, T, m, D, D), (L, T, D), (L, T, D)]
    half = (0, 2, 3, 7, 8)
    return [
        torch.rand(size, device=device, dtype=dtype if i in half else torch.float32) + 0.1
        for i, size in enumerate(sizes)
    ]


def test_opcheck() -> None:
    arguments = [x.requires_grad_() for x in folded(Shape(B=1, F=2, K=3, D=8, m=1, L=1, T=1), DEVICE)]
    torch.library.opcheck(operators.forward, (arguments, "query", "input", False, True, True))


def test_it_compiles_without_a_graph_break(leaves: list[Tensor]) -> None:
    stacks.assert_it_compiles_whole(RUN, leaves)


def test_it_exports_with_a_dynamic_batch(leaves: list[Tensor]) -> None:
    stacks.assert_it_exports_with_a_dynamic_batch(RUN, leaves)


def test_under_autocast_it_computes_in_half_precision(leaves: list[Tensor]) -> None:
    with torch.autocast(DEVICE, torch.bfloat16):
        output = RUN(*leaves)
        expected = RUN(leaves[0].bfloat16(), *leaves[1:])
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, expected)
    assert all(x.dtype == torch.float32 for x in gradients(output, leaves))


def test_a_checkpoint_changes_no_bit(leaves: list[Tensor]) -> None:
    expected = gradients(RUN(*leaves), leaves)
    actual = gradients(checkpoint(RUN, *leaves, use_reentrant=False), leaves)
    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


class Operations(TorchDispatchMode):
    """Counts the operators called, except views and allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and "empty" not in str(func) and "split" not in str(func):
            self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


class CountedKernel:
    """Takes the place of a kernel: counts its launches and does nothing."""

    def __init__(self) -> None:
        self.launches = 0

    def __getitem__(self, grid: tuple[int, ...]) -> "CountedKernel":
        self.launches += 1
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        pass


def test_the_stack_is_one_launch_forward_and_one_launch_and_a_sum_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    forward, backward = CountedKernel(), CountedKernel()
    monkeypatch.setattr(launch, "forward_kernel", forward)
    monkeypatch.setattr(launch, "backward_kernel", backward)
    tensors = folded(Shape(B=1024, F=20, K=64, D=18, m=2, L=4, T=2), "cpu")
    with Operations() as seen:
        output, *kept = launch.launch_forward(tensors, ("query", "input"), False, True)
        assert (forward.launches, seen.counts) == (1, {})
        launch.launch_backward(output, tensors, kept, ("query", "input"), True)
    assert (forward.launches, backward.launches, seen.counts) == (1, 1, {"aten.sum.dim_IntList": 1})


@pytest.mark.parametrize(
    ("keep", "rows", "megabytes"),
    [
        (False, 0, 2.1),  # the inputs, the selection and the output: the least that must be moved
        (True, 17, 10),  # also what is kept for the backward, with a quarter of the points selected
        (True, 64, 27),  # with all points selected; one kernel per layer would move 53 MB
    ],
)
def test_bytes_moved_by_the_forward_at_the_papers_size(keep: bool, rows: int, megabytes: float) -> None:
    shape = Shape(B=1024, F=20, K=64, D=18, m=2, L=4, T=2)
    tensors = folded(shape, "meta")
    order, active, *by_row, contexts, context_sums, hats, deviations = launch.to_keep(tensors, shape.B)
    moved = [*tensors[:2], launch.like_output(tensors)]
    if keep:
        moved += [order, active, contexts, context_sums, hats, deviations]
    total = sum(x.nbytes for x in moved) + sum(x.nbytes for x in by_row) * rows / shape.K
    assert total < megabytes * 1e6 < 1.5 * total


@pytest.mark.parametrize("batch", [1, 100, 1024, 4097, 32768])
@pytest.mark.parametrize("warps", [1, 4, 8])
def test_the_busiest_program_has_at_most_an_eighth_more_samples_than_it_must(batch: int, warps: int) -> None:
    programs, samples = launch.schedule(batch, 132, warps)
    at_once = 132 * 8 // warps
    chunks = -(-batch // samples)
    assert programs == min(chunks, at_once)
    assert -(-chunks // programs) * samples <= 9 / 8 * -(-batch // at_once)


def test_the_flop_counter_knows_both_directions() -> None:
    shape = Shape(B=2, F=5, K=7, D=8, m=2, L=1, T=0)
    tensors = [x.requires_grad_() for x in folded(shape, "meta")]
    with FlopCounterMode(display=False) as counter:
        output, *_ = operators.forward(tensors, "query", "query", False, True, True)
        forward = counter.get_total_flops()
        output.sum().backward()
    attention, product = 2 * 2 * 7 * 5 * 8, 2 * 2 * 7 * 8 * 8  # the heads' scores, and their products with M
    assert forward == 2 * (2 * attention + product)
    assert counter.get_total_flops() - forward == 2 * (6 * attention + 2 * product)
