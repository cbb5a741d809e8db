"""What is counted of a step, beside counts by hand; and that a change is seen (`make bench-quick` holds the counts)."""

import pytest
import torch
from torch import nn

from benchmarks import counts

ACCEPTED = {"system": "tafe", "attention": "PyTorch", **dict.fromkeys((*counts.EQUAL, *counts.WITHIN), "1000")}


def test_launches_are_operators_that_write_memory():
    x = torch.zeros(6, 4)
    with counts.Launches() as found:
        y = x + 1  # 24 floats
        y.view(4, 6).t()  # none: the same storage
        y.mul_(2)  # 24 floats, in place
        torch.cat([x, y])  # 48 floats
    assert (found.count, found.bytes) == (3, 96 * 4)


def test_launches_of_the_backward_pass_are_counted():
    layer, x = nn.Linear(4, 2, bias=False), torch.randn(3, 4)
    with counts.Launches() as forward:
        loss = layer(x).sum()
    with counts.Launches() as backward:
        loss.backward()
    assert (forward.count, forward.bytes) == (2, (3 * 2 + 1) * 4)
    assert backward.count >= 2
    assert backward.bytes >= layer.weight.nbytes


def test_allocations_are_blocks_and_bytes():
    number, size = counts.allocations(lambda: [torch.empty(100) for _ in range(7)])
    assert number == 7
    assert 7 * 400 <= size < 7 * 512


def test_python_instructions_grow_with_what_is_executed_and_are_the_same_each_time():
    def loop(n):
        for _ in range(n):
            pass

    ten, again, thousand = (counts.python_instructions(lambda n=n: loop(n)) for n in (10, 10, 1010))
    assert ten == again
    assert thousand - ten == pytest.approx(1000 * (ten - counts.python_instructions(lambda: loop(0))) / 10)


@pytest.mark.parametrize("name", counts.EQUAL)
def test_an_exact_count_may_not_move(name):
    row = {**ACCEPTED, **dict.fromkeys((*counts.EQUAL, *counts.WITHIN), 1000)}
    assert counts.differences([row], [ACCEPTED]) == []
    assert counts.differences([{**row, name: 1001}], [ACCEPTED]) == [f"tafe, PyTorch: {name} 1,000 -> 1,001 (+0.1%)"]


@pytest.mark.parametrize("name", counts.WITHIN)
def test_others_may_move_by_five_percent(name):
    row = {**ACCEPTED, **dict.fromkeys((*counts.EQUAL, *counts.WITHIN), 1000)}
    assert counts.differences([{**row, name: 1050}, {**row, name: 950}], [ACCEPTED]) == []
    assert counts.differences([{**row, name: 1051}], [ACCEPTED]) == [f"tafe, PyTorch: {name} 1,000 -> 1,051 (+5.1%)"]


def test_a_system_without_accepted_counts_is_told():
    assert counts.differences([{**ACCEPTED, "system": "new"}], [ACCEPTED]) == [
        "new, PyTorch: is not among the accepted counts"
    ]
