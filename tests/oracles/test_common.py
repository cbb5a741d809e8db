"""What the oracles share, against torch."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from tests.oracles import common, tafe
from tests.oracles.random_parameters import close, layers, square

RNG = np.random.default_rng


def test_softmax_rows_sum_to_one_even_when_large():
    rows = common.softmax(RNG(0).normal(size=(5, 7)) * 1000)
    close(rows.sum(axis=1), 1.0)
    assert np.isfinite(rows).all()


def test_mlp_and_layer_norm_equal_torchs():
    rng = RNG(1)
    x = rng.normal(size=(3, 6))
    (w1, b1), (w2, b2) = mlp = layers(rng, 6, 8, 2)
    hidden = torch.relu(linear(*map(torch.tensor, (x, w1, b1))))
    close(common.mlp(x, mlp), linear(hidden, torch.tensor(w2), torch.tensor(b2)))
    norm = {"weight": rng.normal(size=6), "bias": rng.normal(size=6)}
    expected = nn.functional.layer_norm(torch.tensor(x), (6,), *map(torch.tensor, norm.values()), eps=1e-5)
    close(common.layer_norm(x, norm), expected)


@pytest.mark.parametrize("num_heads", [1, 2, 3])
def test_attention_equals_torchs(num_heads):
    """Both torch's bare kernel and nn.MultiheadAttention, with queries and memory of different lengths."""
    rng = RNG(2)
    query, memory, weights = rng.normal(size=(3, 6)), rng.normal(size=(5, 6)), square(rng, 6, "key", "value")
    out = rng.normal(size=(6, 6))
    actual = common.attention(query, memory, weights, num_heads)

    q, k, v = (
        torch.tensor(x).reshape(len(x), num_heads, -1).transpose(0, 1)
        for x in (query, memory @ weights["key"].T, memory @ weights["value"].T)
    )
    kernel = nn.functional.scaled_dot_product_attention(q, k, v)
    close(actual, kernel.transpose(0, 1).reshape(3, 6))

    module = nn.MultiheadAttention(6, num_heads, bias=False, dtype=torch.float64)
    with torch.no_grad():
        module.in_proj_weight.copy_(torch.tensor(np.vstack([np.eye(6), weights["key"], weights["value"]])))
        module.out_proj.weight.copy_(torch.tensor(out))
        expected, _ = module(torch.tensor(query), *[torch.tensor(memory)] * 2)
    close(tafe.projected_attention(query, memory, {**weights, "out": out}, num_heads), expected)
