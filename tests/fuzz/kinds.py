"""The kinds of wrong arguments: each makes one right value wrong, in ways that are drawn."""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

HUGE = 2**40


class Stranger:
    """An object that no argument can be."""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def wrong_type(value: Any) -> Iterator[Any]:
    """Values that are never right: of no type that an argument of ours has, or of another than this one."""
    yield from (Stranger(), b"bytes", 1j)
    if _is_number(value):
        yield from ("three", [value], {"value": value}, torch.zeros(2), str(value))
    if isinstance(value, int) and not isinstance(value, bool):
        yield value + 0.5
    if isinstance(value, str | Path):
        yield from (3, [str(value)], 2.5)
    if isinstance(value, bool):
        yield from ("yes", 2.5, [value])
    if isinstance(value, list | tuple):
        yield from (3, [Stranger()], {"a": 1}, 0.5)
    if isinstance(value, Tensor):
        yield from ("tensor", 3, {"a": 1})
    if isinstance(value, torch.nn.Module | Mapping):
        yield from ("module", 3, [3])


def with_number(number: float) -> Callable[[Any, Generator], Iterator[Any]]:
    """A kind that puts ``number`` in the place of a number, or of one number in a sequence or tensor."""

    def replaced(value: Any, rng: Generator) -> Iterator[Any]:
        if _is_number(value):
            yield number
        elif isinstance(value, list | tuple) and value and all(_is_number(each) for each in value):
            position = int(rng.integers(len(value)))
            parts = [number if place == position else each for place, each in enumerate(value)]
            yield type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        elif isinstance(value, Tensor) and value.numel() and (value.is_floating_point() or math.isfinite(number)):
            if value.dtype == torch.bool:
                return
            changed = value.clone().flatten()
            changed[int(rng.integers(value.numel()))] = number
            yield changed.view(value.shape)

    return replaced


def near_miss(value: Any, rng: Generator) -> Iterator[Any]:
    """A name with one letter left out."""
    if isinstance(value, str) and len(value) > 2:
        place = int(rng.integers(1, len(value) - 1))
        yield value[:place] + value[place + 1 :]
    elif isinstance(value, list | tuple) and value and all(isinstance(each, str) for each in value):
        yield [*value[:-1], *near_miss(value[-1], rng)]


def wrong_shape(value: Any, rng: Generator) -> Iterator[Any]:
    """A sequence of another length or depth, a tensor of another shape, a list in place of a number."""
    if _is_number(value):
        yield from ([value], (value, value), torch.tensor([float(value)] * 2))
    elif isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        yield from ([], [list(value)], [*value, *value[:1]], list(value[:-1]))
    elif isinstance(value, Tensor):
        yield from (value.unsqueeze(0), value.unsqueeze(-1), value[:0], torch.cat([value, value]))
        yield value.new_ones(())
        if value.ndim:
            yield value[..., :1]
        if value.ndim > 1:
            yield from (value.transpose(0, 1), value[0])


KINDS: Mapping[str, Callable[[Any, Generator], Iterator[Any]]] = {
    "wrong type": lambda value, rng: wrong_type(value),
    "-1": with_number(-1),
    "0": with_number(0),
    "NaN": with_number(math.nan),
    "infinity": lambda value, rng: with_number(float(rng.choice([math.inf, -math.inf])))(value, rng),
    "huge": with_number(HUGE),
    "near-miss name": near_miss,
    "wrong shape": wrong_shape,
}


def mutations(kind: str, value: Any, rng: Generator) -> list[Any]:
    """The wrong values of a kind in place of ``value``; none if the kind means nothing for it."""
    return list(KINDS[kind](value, rng))


def generator(*seeds: object) -> Generator:
    """A generator of its own for each cell and draw."""
    return np.random.default_rng(list(" ".join(map(str, seeds)).encode()))
