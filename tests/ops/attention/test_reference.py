import numpy as np
import pytest
import torch

from tests.oracles import common
from torchrec_mtl import ops

SHAPES = [(2, 5, 6, 4, 1), (2, 5, 6, 4, 2), (1, 1, 3, 1, 3), (3, 34, 8, 16, 2), (2, 2, 10, 7, 5)]  # B F D K m


def weights(rng, *shape):
    return [rng.normal(size=shape) for _ in range(3)]


@pytest.mark.parametrize(("batch", "rows", "dim", "points", "heads"), SHAPES)
def test_attention_is_the_equation(batch, rows, dim, points, heads):
    rng = np.random.default_rng(0)
    queries, inputs = rng.normal(size=(batch, points, dim)), rng.normal(size=(batch, rows, dim))
    query, key, value = weights(rng, dim, dim)
    expected = common.per_sample(
        lambda x, y: common.attention(x @ query.T, y, {"key": key, "value": value}, heads), queries, inputs
    )
    tensors = [torch.tensor(x) for x in (queries, inputs, query, key, value)]
    np.testing.assert_allclose(ops.attention(*tensors, heads), expected, rtol=1e-10, atol=1e-12)
