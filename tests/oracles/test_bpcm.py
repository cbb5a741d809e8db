"""BPCM's oracle, against facts that do not come from it."""
# ruff: noqa: N806  (the paper's letters)

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from tests.oracles import bpcm
from tests.oracles.random_parameters import bpcm_parameters, close, square, to_torch

RNG = np.random.default_rng


def test_permuting_fields_permutes_self_attention():
    rng = RNG(3)
    E, weights, order = rng.normal(size=(5, 4)), square(rng, 4, "query", "key", "value"), rng.permutation(5)
    permuted = bpcm.self_attention(E[order], weights, num_heads=2)
    close(permuted, bpcm.self_attention(E, weights, num_heads=2)[order])


def test_aggregation_mixes_only_what_it_says():
    """A change of one field moves only that field's row, or every row."""
    for mixing, rows_moved in [("embedding", 1), ("fields", 4)]:
        rng = RNG(4)
        weights = bpcm_parameters(rng, mixing=mixing)["feature_towers"][0]["aggregation"]
        E = rng.normal(size=(4, 6))
        changed = E.copy()
        changed[2] += 1.0
        difference = bpcm.aggregation(E, weights, mixing) != bpcm.aggregation(changed, weights, mixing)
        assert difference.any(axis=1).sum() == rows_moved


def test_bpcm_by_hand():
    """One field, one dimension: attention is the value, and every step is calculated by hand."""
    one, zero = np.ones((1, 1)), np.zeros((1, 1))
    tower = {
        "attention": {"query": one, "key": one, "value": 3 * one},  # E_att = 6
        "aggregation": {"weight1": one, "bias1": np.ones(1), "weight2": 2 * one, "bias2": -np.ones(1)},  # 5
        "gate": {"aggregated": zero, "attended": np.full((1, 1), np.log(3.0) / 6)},  # W_b = 3/4
    }
    E = np.array([[2.0]])
    close(bpcm.feature_tower(E, tower), [[5.75]])
    close(bpcm.feature_tower(E, tower, without={"gate"}), [[11.0]])
    close(bpcm.feature_tower(E, tower, without={"attention"}), [[5.0]])
    close(bpcm.feature_tower(E, tower, without={"aggregation"}), [[6.0]])
    params = {
        "feature_towers": [tower] * 3,
        "transitions": [{"query": one, "key": one, "value": 2 * one}] * 2,
        "towers": [[(one, np.array([0.5]))]] * 3,
    }
    close(bpcm.forward(E[None], params), [[6.25, 17.75, 40.75]])  # Z_{t+1} = 2 Z_t + 5.75
    close(bpcm.forward(E[None], params, without={"transition"}), [[6.25] * 3])
    params["transitions"] = [{**t, "norm": {"weight": np.ones(1), "bias": np.ones(1)}} for t in params["transitions"]]
    close(bpcm.forward(E[None], params), [[6.25, 1.5, 1.5]])  # one number normalises to 0


@pytest.mark.parametrize("mixing", ["embedding", "fields"])
def test_a_later_bpcm_task_never_reaches_an_earlier_one(mixing):
    rng = RNG(5)
    params, E = bpcm_parameters(rng, mixing=mixing), rng.normal(size=(2, 4, 6))
    before = bpcm.forward(E, params, mixing=mixing)
    params["feature_towers"][1]["attention"]["value"] += 0.1
    moved = np.abs(bpcm.forward(E, params, mixing=mixing) - before).max(axis=0) > 1e-9
    assert moved.tolist() == [False, True, True]


def test_bpcm_equals_a_second_version_in_torch():
    """Batched, with torch's kernels."""
    rng = RNG(9)
    params, E = bpcm_parameters(rng), rng.normal(size=(3, 4, 6))
    weights, x, logits, Z = to_torch(params), torch.tensor(E), [], None

    def attend(query, memory, w):
        projected = linear(query, w["query"]), linear(memory, w["key"]), linear(memory, w["value"])
        return nn.functional.scaled_dot_product_attention(*projected)

    for t, tower in enumerate(weights["feature_towers"]):
        attended, mlp, gate = attend(x, x, tower["attention"]), tower["aggregation"], tower["gate"]
        hidden = linear(x, mlp["weight1"], mlp["bias1"]).relu()
        aggregated = linear(hidden, mlp["weight2"], mlp["bias2"]).relu()
        share = (linear(aggregated, gate["aggregated"]) + linear(attended, gate["attended"])).sigmoid()
        q = torch.lerp(aggregated, attended, share)
        Z = q if Z is None else q + attend(q, Z, weights["transitions"][t - 1])
        first, last = weights["towers"][t]
        logits.append(linear(linear(Z.flatten(1), *first).relu(), *last))
    close(bpcm.forward(E, params), torch.cat(logits, dim=1))


def test_rela_impr_equals_the_papers():
    """BPCM table 2, Ali-CCP: BPCM over the MLP, both tasks."""
    assert bpcm.rela_impr(0.6192, 0.6035) == pytest.approx(0.1516, abs=1e-4)
    assert bpcm.rela_impr(0.6556, 0.5841) == pytest.approx(0.8501, abs=1e-3)
