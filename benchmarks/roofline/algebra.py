"""What TAFE's stack must compute and move, from its sizes alone: as the kernels do it, with scores folded.

A sample keeps ``R = n + 1`` rows of ``n`` selected points (`docs/attention.md`), and a layer's ``N`` keys are the ``F``
fields or ``R`` rows. With ``P_j = I_j Wk_j^T`` folded once for all samples, a layer multiplies ``P_j`` with the keys
(``m R D N``), the keys with ``Wv`` (``N D^2``), attention with values (``R D N``), and what it read with ``Wo``
(``R D^2``). An adapter's query reads rows, not values, so ``Wv`` comes after it. A multiply-add is two operations.
"""

from math import comb
from typing import NamedTuple

from benchmarks.attention import BOTH, Size


class Work(NamedTuple):
    """Of all samples together; bytes are those that must come from and go to memory outside the chip."""

    flop: float
    exponentials: float
    bytes: float


def rows_of_samples(size: Size, share: float) -> dict[int, float]:
    """Shares of samples that keep ``R`` rows, where each point is selected with probability ``share``.

    Example::

        >>> from benchmarks.attention import SIZES
        >>> rows_of_samples(SIZES["paper"]._replace(K=2), 0.5)
        {1: 0.25, 2: 0.75}
    """
    found: dict[int, float] = {}
    for n in range(size.K + 1):
        probability = comb(size.K, n) * share**n * (1 - share) ** (size.K - n)
        if probability:
            rows = min(size.K, n + 1)
            found[rows] = found.get(rows, 0) + probability
    return found


def flop_of_sample(size: Size, rows: int, direction: str, folded: bool = True) -> int:
    """Of a sample that keeps ``rows``; without ``folded``, keys are projected as values are.

    The backward computes a layer again, and an adapter's scores and projections, but not what its query read.
    """
    F, D, m, L, T = size.F, size.D, size.m, size.L, size.T  # noqa: N806
    keys = F + (L - 1) * rows
    scores = m * rows * D * keys if folded else rows * D * keys + D * D * keys
    layers = scores + D * D * keys + rows * D * keys + L * rows * D * D
    of_adapter, projections = L * T * m * rows * D, L * T * D * D
    if direction == "forward":
        return 2 * (layers + 2 * of_adapter + 2 * projections)
    return 2 * (4 * layers + 7 * of_adapter + 8 * projections)


def flop_of_weights(size: Size, direction: str) -> int:
    """Of folding, once for all samples, and of its gradient."""
    return 2 * size.L * (size.K + size.T) * size.D**2 * (1 if direction == "forward" else 3)


def num_weights(size: Size) -> int:
    """Numbers in the weights of layers and adapters."""
    return size.L * size.D * (size.K + 3 * size.D + 2 + size.T * (1 + 3 * size.D + 2))


def bytes_moved(size: Size, direction: str) -> int:
    """Of H, z, the weights and the output; backward, of H, z and the weights again, and of all gradients."""
    itemsize = size.dtype.itemsize
    read = size.B * (size.F * size.D * itemsize + size.K * 4) + num_weights(size) * itemsize
    output = size.B * size.T * size.D * itemsize
    return read + output if direction == "forward" else 3 * read + 2 * output


def work(size: Size, share: float, direction: str) -> Work:
    """Of a batch whose points are selected with probability ``share``."""
    flop, exponentials = 0.0, 0.0
    for rows, probability in rows_of_samples(size, share).items():
        flop += probability * flop_of_sample(size, rows, direction)
        exponentials += probability * size.m * rows * (size.F + (size.L - 1) * rows + size.L * size.T)
    twice = 2 if direction == BOTH else 1
    return Work(
        size.B * flop + flop_of_weights(size, direction),
        size.B * exponentials * twice,
        bytes_moved(size, direction),
    )
