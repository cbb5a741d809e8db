"""The roofline's counts, against the same equations in PyTorch whose operators are counted, and against tensors."""

import csv
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import record
from benchmarks.attention import BOTH, SIZES, Size, draw, stack, step
from benchmarks.roofline import __main__ as program
from benchmarks.roofline import algebra, cuda_kernels, triton_kernels
from benchmarks.roofline.control_flow import Instruction, SourceLoop, issued, matched

SMALL = Size(5, 3, 4, 6, 2, 3, 2, torch.float64)
DIRECTIONS = ("forward", BOTH)


def layer(inputs: Tensor, z: Tensor, folded: Tensor, first: bool, *weights: Tensor) -> Tensor:
    """TAFE eq. (17)-(20) with scores folded and values unfolded; ``folded`` is [m, K, D]."""
    points, value, output, *norm = weights
    attention = (z[:, None, :, None] * folded @ inputs.mT[:, None]).softmax(-1)
    values = (inputs @ value.T).unflatten(-1, (len(folded), -1)).transpose(1, 2)
    x = (attention @ values).transpose(1, 2).flatten(2) @ output.T + (z[..., None] * points if first else inputs)
    return torch.nn.functional.layer_norm(x, x.shape[-1:], *norm)


def read(rows: Tensor, folded: Tensor) -> Tensor:
    """What an adapter's queries ``[T m, D]`` read of the rows themselves."""
    return (folded @ rows.mT).softmax(-1) @ rows


def adapt(contexts: Tensor, former: Tensor, value: Tensor, output: Tensor, *norm: Tensor) -> Tensor:
    """What comes after that, TAFE eq. (21)-(22), for a task; contexts are [B, m, D]."""
    of_heads = value.unflatten(0, (contexts.shape[1], -1))
    x = (
        torch.stack([contexts[:, j] @ of_heads[j].T for j in range(contexts.shape[1])], 1).flatten(1) @ output.T
        + former
    )
    return torch.nn.functional.layer_norm(x, x.shape[-1:], *norm)


def fold(queries: Tensor, key: Tensor, heads: int) -> Tensor:
    """``[N, D]`` and ``[D, D]`` to ``[m, N, D]``."""
    parts = zip(queries.chunk(heads, -1), key.chunk(heads), strict=True)
    return torch.stack([a @ b for a, b in parts]) * (heads / queries.shape[-1]) ** 0.5


def as_the_kernels(size: Size) -> Any:
    """The stack in the kernels' order; the backward computes again what theirs does."""

    def run(inputs: Tensor, z: Tensor, *weights: Tensor) -> Tensor:
        again = lambda f, *args: checkpoint(f, *args, use_reentrant=False)  # noqa: E731
        (points, key, *others), (indicators, own_key, *own) = weights[:6], weights[6:]
        rows, adapted = inputs, [torch.zeros(len(inputs), size.D, dtype=inputs.dtype)] * size.T
        for l in range(size.L):  # noqa: E741
            folded = fold(points[l], key[l], size.m)
            rows = again(layer, rows, z, folded, l == 0, points[l], *(x[l] for x in others))
            queries = torch.stack([fold(indicators[l, t, None], own_key[l, t], size.m)[:, 0] for t in range(size.T)])
            contexts = again(read, rows, queries.flatten(0, 1)).unflatten(1, (size.T, size.m))
            for t in range(size.T):
                adapted[t] = again(adapt, contexts[:, t], adapted[t], *(x[l, t] for x in own))
        return torch.stack(adapted, 1)

    return run


class Exponentials(TorchDispatchMode):
    """Counts those of softmaxes."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._softmax.default:
            self.count += args[0].numel()
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_work_is_that_of_the_equations(direction: str) -> None:
    tensors = draw(SMALL, 1.0, "cpu")
    run = step(as_the_kernels(SMALL), tensors, direction)
    for own, other in zip(run(), step(stack("reference", SMALL.m), tensors, direction)(), strict=True):
        torch.testing.assert_close(own, other)
    with FlopCounterMode(display=False) as flop, Exponentials() as exponentials:
        run()
    found = algebra.work(SMALL, 1.0, direction)
    assert found.flop == flop.get_total_flops()
    assert found.exponentials == exponentials.count


def test_a_sample_with_fewer_rows_is_a_stack_of_fewer_points() -> None:
    fewer = SMALL._replace(K=2, B=1)
    with FlopCounterMode(display=False) as flop:
        step(as_the_kernels(fewer), draw(fewer, 1.0, "cpu"), BOTH)()
    of_sample = algebra.flop_of_sample(SMALL, 2, BOTH)
    assert of_sample == flop.get_total_flops() - algebra.flop_of_weights(fewer, BOTH)


def test_the_equations_as_they_stand_differ_in_the_adapters_and_the_folding() -> None:
    B, _, K, D, m, L, T, _ = SMALL  # noqa: N806
    with FlopCounterMode(display=False) as flop:
        step(stack("reference", SMALL.m), draw(SMALL, 1.0, "cpu"), "forward")()
    adapters = 2 * L * T * (2 * K * D * D + 2 * K * D + D * D)
    ours = 2 * L * T * (2 * m * K * D + 2 * D * D)
    assert flop.get_total_flops() == B * (algebra.flop_of_sample(SMALL, K, "forward", folded=False) - ours + adapters)


@pytest.mark.parametrize("share", [0.25, 1.0])
def test_rows_are_those_of_all_selections(share: float) -> None:
    found: dict[int, float] = {}
    for selected in product((0, 1), repeat=SMALL.K):
        probability = share ** sum(selected) * (1 - share) ** (SMALL.K - sum(selected))
        rows = sum(selected) + (0 in selected)
        found[rows] = found.get(rows, 0) + probability
    assert algebra.rows_of_samples(SMALL, share) == pytest.approx({rows: p for rows, p in found.items() if p})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_those_of_the_tensors(dtype: torch.dtype) -> None:
    size = SMALL._replace(dtype=dtype)
    tensors = draw(size, 0.5, "cpu")
    output, *gradients = step(stack("reference", size.m), tensors, BOTH)()
    given = sum(x.nbytes for x in tensors)
    assert algebra.bytes_moved(size, "forward") == given + output.nbytes
    upstream = output.nbytes
    in_both = 2 * given + output.nbytes + upstream + sum(x.nbytes for x in gradients)
    assert algebra.bytes_moved(size, BOTH) == in_both


def code(*lines: tuple[str, bool, int | None]) -> list[Instruction]:
    """Instructions from their names, whether they are guarded, and where they jump to."""
    return [
        Instruction(16 * i, guarded, name, "" if to is None else f" 0x{16 * to:x} ")
        for i, (name, guarded, to) in enumerate(lines)
    ]


ADD, END = ("FADD", False, None), ("EXIT", False, None)


@pytest.mark.parametrize(
    ("lines", "times", "count"),
    [
        ([ADD, ADD, END], [], 3),
        ([ADD, ("BRA", True, 4), ADD, ADD, END], [], 3),  # the shorter way of two
        ([ADD, ("BRA", False, 3), ADD, ADD, END], [], 4),
        ([ADD, ("BRA", True, 4), ADD, ("BRA", True, 2), END], [5], 13),  # a loop is not jumped over
        ([ADD, ("BRA", True, 4), ADD, ("BRA", True, 2), END], [0], 3),
        ([ADD, ADD, ("BRA", True, 1), ("BRA", True, 0), END], [3, 4], 31),
        ([ADD, ("EXIT", True, None), ADD, ("BRA", False, 0)], [2], 8),  # a loop that ends the kernel
        ([ADD, END, ADD, ("BRA", False, 0)], [], 2),  # what is behind the end is for rare cases
    ],
)
def test_the_cheapest_way_is_counted(lines: list, times: list[float], count: float) -> None:
    assert issued(code(*lines), times).instructions == count


def test_loops_that_were_unrolled_are_the_deepest_ones() -> None:
    nested = code(ADD, ADD, ("BRA", True, 1), ("BRA", True, 0), END)
    source = [SourceLoop(1, 5.0), SourceLoop(2, 2, True), SourceLoop(3, 3, True)]
    assert matched(nested, source[:2]) == [5.0, 2]
    assert matched(nested, source) == [5.0, 2]
    with pytest.raises(ValueError, match="are not those of its source"):
        matched(nested, [SourceLoop(1, 5.0), SourceLoop(1, 2)])
    with pytest.raises(ValueError, match="1 loops were expected, and there are 2"):
        issued(nested, [1.0])


@pytest.mark.verify
@pytest.mark.parametrize("rows", [17, 64])
def test_the_kernels_multiply_what_the_algebra_has(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each product of 16 x 8 x 16 is an instruction, so their number says whether loops were counted as they run."""
    size = SIZES["mid"]
    if cuda_kernels.why_not(size) or triton_kernels.why_not():
        pytest.skip("there is no compiler")
    for direction in DIRECTIONS:
        needed = algebra.flop_of_sample(size, rows, direction)
        found = cuda_kernels.issued_for_rows(size, rows, direction)
        assert needed <= 4096 * found.matrix <= 2.5 * needed  # rows and fields are filled up to eights
        assert 4 * found.matrix < found.instructions  # which they take of the units, at least
    monkeypatch.delenv("TRITON_INTERPRET")
    found, _ = record.in_own_process(triton_kernels.issued_for_rows, size, rows, "forward")
    assert found.matrix == products_of_triton(size, rows)


def products_of_triton(size: Size, rows: int) -> float:
    """Of its forward kernel's tiles of 16 rows and 32 keys, at 32 dimensions, by one warp."""
    tiles, keys = -(-rows // 16), -(-rows // 32)
    in_keys = 16  # 16 x 32 x 32, for the scores and for what is read
    layers = size.m * tiles * (in_keys * (1 + (size.L - 1) * keys) + 8 * size.L)
    return layers + size.L * keys * in_keys + size.L * size.T * size.m * 8 / 16


def test_the_results_are_what_is_counted_now() -> None:
    with (record.RESULTS / "roofline.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    found = list(program.rows(counted=False))
    assert len(found) == len(rows)
    for row, expected in zip(rows, found, strict=True):
        assert {name: row[name] for name in expected} == {name: str(value) for name, value in expected.items()}


def test_what_the_page_concludes_is_in_the_results() -> None:
    with (record.RESULTS / "roofline.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    assert "memory" not in {row["binds"] for row in rows}
    assert {row["binds"] for row in rows if row["direction"] == BOTH} == {"products"}
    of_exponentials = {(row["size"], row["share"]) for row in rows if row["binds"] == "exponentials"}
    assert of_exponentials == {("mid", "0.25"), ("mid", "1.0"), ("large", "1.0")}
    counted = [row for row in rows if row["instructions"]]
    assert len(counted) == 20
    assert {row["binds_the_kernel"] for row in counted} == {"issue"}
    cycles = [float(row["measured_to_issue"]) for row in counted if row["candidate"] == "cuda"]
    assert (min(cycles), max(cycles)) == (3.31, 12.35)
    each = {}
    for row in counted:
        if float(row["matrix_instructions"]):
            name = row["size"], row["share"], row["direction"], row["candidate"]
            each[name] = round(float(row["instructions"]) / float(row["matrix_instructions"]))
    assert each["large", "1.0", BOTH, "triton"] == 24
    assert each["mid", "1.0", BOTH, "cuda"] == 11
