"""The oracles themselves, held to facts that do not come from them."""
# ruff: noqa: N806  (the papers' letters)

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import linear

from tests.oracles import bpcm, common, losses, tafe
from tests.oracles.parameters import bpcm_parameters, close, layers, square, to_torch

RNG = np.random.default_rng


def test_softmax_rows_sum_to_one_even_when_large():
    rows = common.softmax(RNG(0).normal(size=(5, 7)) * 1000)
    close(rows.sum(axis=1), 1.0)
    assert np.isfinite(rows).all()


def test_mlp_and_layer_norm_are_those_of_torch():
    rng = RNG(1)
    x = rng.normal(size=(3, 6))
    (w1, b1), (w2, b2) = mlp = layers(rng, 6, 8, 2)
    hidden = torch.relu(linear(*map(torch.tensor, (x, w1, b1))))
    close(common.mlp(x, mlp), linear(hidden, torch.tensor(w2), torch.tensor(b2)))
    norm = {"weight": rng.normal(size=6), "bias": rng.normal(size=6)}
    expected = nn.functional.layer_norm(torch.tensor(x), (6,), *map(torch.tensor, norm.values()), eps=1e-5)
    close(common.layer_norm(x, norm), expected)


@pytest.mark.parametrize("num_heads", [1, 2, 3])
def test_attention_is_that_of_torch(num_heads):
    """Both torch's bare kernel and nn.MultiheadAttention, with queries of another length than the memory."""
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


def test_permuting_fields_permutes_self_attention():
    rng = RNG(3)
    E, weights, order = rng.normal(size=(5, 4)), square(rng, 4, "query", "key", "value"), rng.permutation(5)
    permuted = bpcm.self_attention(E[order], weights, num_heads=2)
    close(permuted, bpcm.self_attention(E, weights, num_heads=2)[order])


def test_aggregation_mixes_only_what_it_says():
    """Changing one field moves that field's row alone, or every row."""
    for mixing, rows_moved in [("embedding", 1), ("fields", 4)]:
        rng = RNG(4)
        weights = bpcm_parameters(rng, mixing=mixing)["feature_towers"][0]["aggregation"]
        E = rng.normal(size=(4, 6))
        changed = E.copy()
        changed[2] += 1.0
        difference = bpcm.aggregation(E, weights, mixing) != bpcm.aggregation(changed, weights, mixing)
        assert difference.any(axis=1).sum() == rows_moved


def test_bpcm_by_hand():
    """One field, one dimension: attention is the value; every step is done by hand."""
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


def test_bpcm_written_again_in_torch():
    """The whole model a second time: batched, with torch's own kernels."""
    rng = RNG(9)
    params, E = bpcm_parameters(rng), rng.normal(size=(3, 4, 6))
    own, x, logits, Z = to_torch(params), torch.tensor(E), [], None

    def attend(query, memory, w):
        projected = linear(query, w["query"]), linear(memory, w["key"]), linear(memory, w["value"])
        return nn.functional.scaled_dot_product_attention(*projected)

    for t, tower in enumerate(own["feature_towers"]):
        attended, mlp, gate = attend(x, x, tower["attention"]), tower["aggregation"], tower["gate"]
        hidden = linear(x, mlp["weight1"], mlp["bias1"]).relu()
        aggregated = linear(hidden, mlp["weight2"], mlp["bias2"]).relu()
        share = (linear(aggregated, gate["aggregated"]) + linear(attended, gate["attended"])).sigmoid()
        q = torch.lerp(aggregated, attended, share)
        Z = q if Z is None else q + attend(q, Z, own["transitions"][t - 1])
        first, last = own["towers"][t]
        logits.append(linear(linear(Z.flatten(1), *first).relu(), *last))
    close(bpcm.forward(E, params), torch.cat(logits, dim=1))


def test_losses_by_hand():
    p = np.array([[0.5, 0.75], [0.25, 0.125], [0.5, 0.25]])
    y, w = np.array([[1, 1], [1, 0], [0, 0]]), np.array([[3.0, 2.0], [3.0, 0.0], [0.0, 1.0]])
    log, first = np.log, np.log([2, 4, 2])  # the first task's terms
    close(losses.cross_entropy(p, y), (first.sum() + 2 * log(4 / 3) + log(8 / 7)) / 3)
    close(losses.cross_entropy(p, y, w, [1.0, 10.0]), (3 * first[:2].sum() + 30 * log(4 / 3)) / 3)
    close([losses.calibrator(p), losses.calibrator(p, w)], [0.25 / 3, 6 * 0.25 / 3])
    close([losses.dependence(p, y), losses.dependence(p, y, w)], [(1 / 16 + 49 / 64 + 1 / 16) / 3, 6 / 16 / 3])
    close(bpcm.objective(p, y), losses.cross_entropy(p, y) + 0.05)
    close(tafe.objective(p, y, dependence_weight=2.0), losses.cross_entropy(p, y) + 2 * 57 / 64 / 3)
    q = np.array([[np.nan, 1.0], [np.nan, 0.5], [np.nan, 0.25]])
    close(losses.local_space(p, y, q), (first.sum() + log(4 / 3) + 2 * log(8 / 7)) / 3)


def test_step_propensity_by_hand():
    logits = np.log(np.array([[3.0, 1.0], [1.0, 3.0], [3.0, 1.0]]))  # p = (.75, .5), (.5, .75), (.75, .5)
    propensities = losses.step_propensity(logits, np.array([[1, 0], [1, 0], [1, 1]]))
    close(propensities, [[1, 0.5], [1, 0.001], [1, 1]])


def test_rela_impr_is_that_of_the_paper():
    """BPCM table 2, Ali-CCP: BPCM over the MLP, both tasks."""
    assert bpcm.rela_impr(0.6192, 0.6035) == pytest.approx(0.1516, abs=1e-4)
    assert bpcm.rela_impr(0.6556, 0.5841) == pytest.approx(0.8501, abs=1e-3)
