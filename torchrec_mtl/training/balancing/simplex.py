"""The minimum of a convex function over weights that are not negative and add up to 1."""

from collections.abc import Callable, Sequence

_MOVES_PER_TASK = 100


RELATIVE_TOLERANCE = 1e-10  # of slopes, to squared lengths of gradients


def minimise_over_weights(
    num_tasks: int,
    slopes: Callable[[Sequence[float]], Sequence[float]],
    move: Callable[[Sequence[float], int, int], float],
    tolerance: float,
) -> list[float]:
    """Returns the weights ``[T]`` at the minimum.

    From equal weights, it moves weight from the task where the function falls fastest with less of it to the task where
    it falls fastest with more, by the best amount: pairwise Frank-Wolfe, which ends at the minimum, and for two tasks
    in one step.

    Args:
        num_tasks: number of tasks, ``T``.
        slopes: the function's gradient at weights.
        move: the best amount to move at weights, from the second of two tasks to the first, perhaps more than there is.
        tolerance: difference of two slopes below which it ends; it also ends after 100 moves a task.

    Example::

        >>> def move(weights, first, second):  # of w_0^2 + w_1^2 / 2
        ...     slope = [2 * weights[0], weights[1]]
        ...     return (slope[second] - slope[first]) / 3
        >>> [round(w, 6) for w in minimise_over_weights(2, lambda w: [2 * w[0], w[1]], move, tolerance=1e-9)]
        [0.333333, 0.666667]
    """
    weights = [1 / num_tasks] * num_tasks
    for _ in range(_MOVES_PER_TASK * num_tasks):
        slope = slopes(weights)
        to = min(range(num_tasks), key=lambda task: slope[task])
        of = max((task for task in range(num_tasks) if weights[task] > 0), key=lambda task: slope[task])
        if slope[of] - slope[to] <= tolerance:
            break
        amount = min(weights[of], move(weights, to, of))
        if amount <= 0:
            break
        weights[to] += amount
        weights[of] -= amount
    return weights
