"""The CUDA C++ kernels as PyTorch operators: autograd, compile, export, autocast, checkpoints; launches and bytes."""

import ctypes
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
from tests.ops.inducing_attention.test_cuda import DEVICE, PAPER, built, emulated_in_poisoned_memory
from torchrec_mtl.errors import InputError
from torchrec_mtl.ops.inducing_attention.cuda import launch, operators

RUN = stacks.on_backend("cuda", PAPER.m)
ARGUMENTS = (PAPER.m, "query", "input", False, "Tf32x3", True)
__all__ = ["emulated_in_poisoned_memory"]


@pytest.fixture
def leaves() -> list[Tensor]:
    built(PAPER)
    return [x.to(DEVICE, torch.float32).requires_grad_() for x in stacks.tensors(PAPER)]


def gradients(output: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(output.float().square().sum(), leaves))


def test_opcheck(leaves: list[Tensor]) -> None:
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor")
    inputs, selection, *weights = leaves
    torch.library.opcheck(operators.forward, (inputs, selection, weights, *ARGUMENTS), test_utils=utilities)


def test_it_compiles_without_a_graph_break(leaves: list[Tensor]) -> None:
    stacks.assert_it_compiles_whole(RUN, leaves)


def test_it_exports_with_a_dynamic_batch(leaves: list[Tensor]) -> None:
    stacks.assert_it_exports_with_a_dynamic_batch(RUN, leaves)


@pytest.mark.verify
def test_under_autocast_it_computes_in_half_precision(leaves: list[Tensor]) -> None:
    built(PAPER, torch.bfloat16)
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


def test_second_derivatives_are_refused(leaves: list[Tensor]) -> None:
    first = torch.autograd.grad(RUN(*leaves).square().sum(), leaves, create_graph=True)
    for wanted in (leaves[:1], leaves[2:3], leaves[5:6]):  # inputs, points, Wo
        with pytest.raises(InputError, match="`backend` must be 'reference' for second derivatives"):
            torch.autograd.grad(sum(x.square().sum() for x in first), wanted, retain_graph=True)


def test_too_many_samples_are_refused(leaves: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_MOST_WORDS", 100)
    with pytest.raises(InputError, match=r"`inputs` \(of shape \[6, 7, 18\]\) must have fewer samples"):
        RUN(*leaves)


class Operations(TorchDispatchMode):
    """Counts the operators called, except views and allocations, which the tests fill."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and not any(name in str(func) for name in ("empty", "split", "fill")):
            self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_runs_beside_the_kernels(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(launch, "_call", lambda name, *_: calls.append(name))
    monkeypatch.setattr(launch, "_workspace_size", lambda *_: 1)
    inputs, selection, *weights = (x.to(dtype) for x in stacks.tensors(PAPER))
    selection = selection.float()
    arguments = (weights, PAPER.m, ("query", "input"), False, "Tf32x3")
    with Operations() as seen:
        output, kept = launch.launch_forward(inputs, selection, *arguments, True)
        launch.launch_backward(output, inputs, selection, weights, kept, *arguments[1:])
    assert (calls, dict(seen.counts)) == (["run_forward", "run_backward"], {})


@pytest.mark.parametrize(
    ("keep", "rows", "megabytes"),
    [
        (False, 0, 4),  # the inputs, the selection, the output, and what the adapters read
        (True, 17, 12),  # also what is kept for the backward, with a quarter of the points selected
        (True, 64, 30),  # with all points selected; one kernel per layer would move 53 MB
    ],
)
def test_bytes_moved_by_the_forward_at_the_papers_size(keep: bool, rows: int, megabytes: float) -> None:
    shape = Shape(B=1024, F=20, K=64, D=18, m=2, L=4, T=2)
    inputs, selection, *weights = (x.to("meta", torch.float32) for x in stacks.tensors(shape))
    words = launch._kept_words(inputs, weights, shape.m, keep)
    moved = 4 * (sum(words.values()) - words["outputs"] + words["outputs"] * rows / shape.K)
    moved += sum(x.nbytes for x in (inputs, selection, launch.like_output(inputs, weights)))
    assert moved < megabytes * 1e6 < 1.6 * moved


def test_the_flop_counter_knows_both_directions() -> None:
    shape = Shape(B=2, F=5, K=7, D=18, m=2, L=1, T=1)
    tensors = [x.to("meta", torch.float32).requires_grad_() for x in stacks.tensors(shape)]
    with FlopCounterMode(display=False) as counter:
        output, _ = operators.forward(*tensors[:2], tensors[2:], *ARGUMENTS)
        forward = counter.get_total_flops()
        output.sum().backward()
    scores, contexts = 2 * 2 * 7 * 18 * 5, 2 * 7 * 18 * 5  # folded scores take D a head
    projections, adapter = 2 * 18 * 18 * (5 + 7), 2 * 2 * 2 * 7 * 18 + 4 * 18 * 18
    assert forward == 2 * (scores + contexts + projections + adapter)
    assert counter.get_total_flops() > 2 * forward


def test_the_structs_are_those_of_the_kernels(leaves: list[Tensor]) -> None:
    inputs, selection, *weights = leaves
    sizes = launch._sizes(inputs, selection, weights, ("query", "input"), False)
    library = launch.kernels_of(launch.instance_of("Tf32x3", inputs, weights, PAPER.m), inputs.device)
    assert library.struct_bytes(0) == ctypes.sizeof(sizes)
    assert library.struct_bytes(1) == ctypes.sizeof(launch._Arguments)


@pytest.mark.parametrize("batch", [1, 33, 20000])  # 20000 are more than are ordered among each other
def test_samples_with_more_rows_come_first(batch: int, leaves: list[Tensor]) -> None:
    inputs, _, *weights = (x.detach() for x in leaves)
    inputs = inputs.new_zeros(batch, *inputs.shape[1:])
    generator = torch.Generator().manual_seed(0)
    share = torch.rand(batch, 1, generator=generator)
    weights[0] = weights[0].new_zeros(len(weights[0]), 64, 18)
    selection = (torch.rand(batch, 64, generator=generator) < share).to(inputs)
    kept = launch.to_keep(inputs, weights, PAPER.m, keep=False)
    arguments = launch._arguments(inputs, selection, weights, kept, PAPER.m, ("query", "input"), False, keep=False)
    launch._call("prepare", launch.instance_of("Tf32x3", inputs, weights, PAPER.m), inputs.device, arguments)
    rows, order = kept[-2 * batch :].cpu().split(batch)
    expected = (selection != 0).sum(1).cpu()
    assert torch.equal(rows, (expected + (expected < 64)).int())
    blocks = -((rows + 7) // 8)
    for first in range(0, batch, 16384):
        part = slice(first, first + 16384)
        assert torch.equal(order[part], first + blocks[part].argsort(stable=True).int())
