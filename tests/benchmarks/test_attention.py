"""`benchmarks.attention` gives no time of what is wrong."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks import attention

SIZE = attention.Size(3, 4, 8, 8, 2, 2, 2, torch.float32)
SDPA = attention.stack("sdpa", SIZE.m)


@pytest.fixture(scope="module")
def tensors():
    return attention.draw(SIZE, 0.5, "cpu")


@pytest.fixture(scope="module")
def expected(tensors):
    return attention.expect(tensors, SIZE.m)


def test_a_right_path_passes(tensors, expected):
    attention.check(attention.step(SDPA, tensors, attention.BOTH)(), expected)


def test_samples_are_checked_in_parts(tensors, expected, monkeypatch):
    monkeypatch.setattr(attention, "CHUNK", 2)
    for (one, _), (other, _) in zip(attention.expect(tensors, SIZE.m), expected, strict=True):
        assert one.allclose(other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("index", range(14))
def test_a_wrong_gradient_is_seen(index, tensors, expected):
    def wrong(*arguments):
        arguments = list(arguments)
        arguments[index] = 1.001 * arguments[index] - 0.001 * arguments[index].detach()
        return SDPA(*arguments)

    with pytest.raises(ArithmeticError, match="the error is"):
        attention.check(attention.step(wrong, tensors, attention.BOTH)(), expected)


def test_a_path_that_is_wrong_or_fails_gets_a_row_and_the_others_go_on():
    def broken(*_):
        raise RuntimeError("no kernel image")

    rows: list[dict[str, object]] = []
    paths = {"broken": broken, "wrong": lambda *x: 2 * SDPA(*x), "sdpa": SDPA}
    results = SimpleNamespace(add=rows.append)
    cases = [(case["direction"], list(runs)) for case, runs in attention.checked(results, {}, SIZE, (0.5,), paths)]
    assert cases == [("forward", ["sdpa"]), (attention.BOTH, ["sdpa"])]
    assert [(row["direction"], row["candidate"], row["error"].split(":")[0]) for row in rows] == [
        (direction, *failure)
        for direction in ("forward", attention.BOTH)
        for failure in [("broken", "RuntimeError"), ("wrong", "ArithmeticError")]
    ]
