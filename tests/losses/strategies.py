"""What hypothesis draws for the tests of losses."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from torchrec_mtl import Task, TaskForest

few_examples = settings(max_examples=50)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def batches(draw):
    """Logits, labels that fall along a funnel, and weights with zeros, or none: [B, T]."""
    rng = np.random.default_rng(draw(seeds))
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 4)))
    labels = np.cumprod(rng.random(shape) < 0.6, axis=1).astype(float)
    weights = rng.integers(0, 3, shape) * rng.random(shape) if draw(st.booleans()) else None
    return rng.normal(scale=3, size=shape), labels, weights


@st.composite
def forests(draw):
    """Any forest of 2 to 5 tasks, some of which need another."""
    parents = [draw(st.none() | st.integers(0, t - 1)) if t else None for t in range(draw(st.integers(2, 5)))]
    if not any(parent is not None for parent in parents):
        parents[-1] = 0
    return TaskForest(*(Task(f"t{t}", after=None if p is None else f"t{p}") for t, p in enumerate(parents)))


def forest_batch(tasks, seed, num_rows=4):
    """Logits, arbitrary labels, and weights with zeros: [B, T]."""
    rng = np.random.default_rng(seed)
    shape = (num_rows, len(tasks))
    return rng.normal(size=shape), rng.integers(0, 2, shape).astype(float), rng.integers(0, 3, shape).astype(float)
