"""Random parameters in the oracles' layout, and a comparison as close as float64 allows."""
# ruff: noqa: N803  (the papers' letters)

from itertools import pairwise

import numpy as np
import torch


def close(actual, expected, tolerance=1e-12):
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def layers(rng, *sizes):
    return [(rng.normal(size=(o, i)), rng.normal(size=o)) for i, o in pairwise(sizes)]


def square(rng, d, *names):
    return {name: rng.normal(size=(d, d)) for name in names}


def bpcm_parameters(rng, F=4, d=6, T=3, mixing="embedding"):
    n = F * d if mixing == "fields" else d
    feature_towers = []
    for _ in range(T):
        (weight1, bias1), (weight2, bias2) = layers(rng, n, 5, n)
        feature_towers.append(
            {
                "attention": square(rng, d, "query", "key", "value"),
                "aggregation": {"weight1": weight1, "bias1": bias1, "weight2": weight2, "bias2": bias2},
                "gate": square(rng, d, "aggregated", "attended"),
            }
        )
    transitions = [square(rng, d, "query", "key", "value") for _ in range(T - 1)]
    return {
        "feature_towers": feature_towers,
        "transitions": transitions,
        "towers": [layers(rng, F * d, 7, 1) for _ in range(T)],
    }


def tafe_parameters(rng, F=5, d=6, K=4, L=3, T=2, selectors=1):
    def norm():
        return {"weight": rng.normal(size=d), "bias": rng.normal(size=d)}

    def block(**others):
        return {**square(rng, d, "query", "key", "value", "out"), "norm": norm(), **others}

    return {
        "selectors": [layers(rng, F * d, 8, K) for _ in range(selectors)],
        "layers": [block(inducing_points=rng.normal(size=(K, d))) for _ in range(L)],
        "adapters": [[block(indicator=rng.normal(size=d)) for _ in range(T)] for _ in range(L)],
        "towers": [layers(rng, d, 7, 1) for _ in range(T)],
    }


def to_torch(tree):
    """Nested dicts and lists with every array as a float64 tensor."""
    if isinstance(tree, dict):
        return {name: to_torch(part) for name, part in tree.items()}
    return torch.tensor(tree) if isinstance(tree, np.ndarray) else [to_torch(part) for part in tree]
