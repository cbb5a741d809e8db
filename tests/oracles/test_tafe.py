"""TAFE's oracle, against facts that do not come from it."""
# ruff: noqa: N806  (the paper's letters)

import numpy as np
import pytest
import torch
from torch.nn.functional import layer_norm, linear, scaled_dot_product_attention

from tests.oracles import tafe
from tests.oracles.random_parameters import close, tafe_parameters, to_torch

RNG = np.random.default_rng


@pytest.mark.parametrize(("step", "gamma"), [(0, 10.0), (25_000, 5.0), (49_995, 1e-3), (1_000_000, 1e-3)])
def test_gamma_schedule(step, gamma):
    assert tafe.gamma_schedule(step) == pytest.approx(gamma, rel=1e-9)


@pytest.mark.parametrize("gamma", [10.0, 5.0, 1e-3])
def test_smooth_step(gamma):
    """Exact at and beyond its knots, monotone and symmetric, with a derivative of 0 at both knots."""
    half = gamma / 2
    knots = np.array([-2 * half, -half, 0.0, half, 2 * half])
    assert tafe.smooth_step(knots, gamma).tolist() == [0, 0, 0.5, 1, 1]
    z = np.linspace(-1.2 * half, 1.2 * half, 2001)
    f = tafe.smooth_step(z, gamma)
    assert (np.diff(f) >= 0).all()
    assert (np.diff(f)[np.abs(z[1:]) < 0.99 * half] > 0).all()
    close(f + f[::-1], 1.0)
    slope = np.diff(f) / np.diff(z)
    assert np.abs(np.diff(slope)).max() < 0.005 / gamma  # no jump: C1
    close(slope.max(), 1.5 / gamma, 1e-5)


def test_an_unselected_point_reads_the_mean_of_the_values():
    rng = RNG(6)
    layer, H = tafe_parameters(rng)["layers"][0], rng.normal(size=(5, 6))
    points = tafe.inducing_attention(H, np.array([0.0, 1.0, 0.0, 0.5]), layer)
    mean = (H @ layer["value"].T).mean(axis=0) @ layer["out"].T
    close(points[[0, 2]], [mean, mean])
    assert np.abs(points[[1, 3]] - mean).max(axis=1).min() > 1e-3


def test_tafe_by_hand():
    """One field: attention is the value, so O is H; LayerNorm of two numbers is +-1 except for its eps."""
    eye, d = np.eye(2), 2
    norm = {"weight": np.ones(d), "bias": np.zeros(d)}
    block = {"query": eye, "key": eye, "value": eye, "out": eye, "norm": norm}
    params = {
        "selectors": [[(np.zeros((1, d)), np.array([2.5]))]],  # f_D(2.5) = 27 / 32 at gamma 10
        "layers": [{**block, "inducing_points": np.array([[0.0, 64.0]])}],
        "adapters": [[{**block, "indicator": np.zeros(d)}] * 2],
        "towers": [[(np.array([[1.0, 0.0]]), np.array([10.0]))], [(np.array([[0.0, 2.0]]), np.zeros(1))]],
    }
    H = np.array([[[3.0, 1.0]]])
    unit = 1 / np.sqrt(1 + 1e-5)
    again = unit / np.sqrt(unit**2 + 1e-5)
    close(tafe.selections(H[0], params, 10.0)[0], [27 / 32])
    close(tafe.forward(H, params, residual="none"), [[10 + again, -2 * again]])
    unit = 26 / np.sqrt(26**2 + 1e-5)  # O + query = [3, 1 + 54]
    again = unit / np.sqrt(unit**2 + 1e-5)
    close(tafe.forward(H, params), [[10 - again, 2 * again]])
    close(tafe.forward(H, params, with_tsa=False), [[10 - unit, 2 * unit]])
    plain = 2 / np.sqrt(4 + 1e-5)  # LayerNorm(H + H)
    close(tafe.forward(H, params, with_asrg=False, with_tsa=False), [[10 + plain, -2 * plain]])


@pytest.mark.parametrize("residual", ["query", "none"])
def test_the_order_of_inducing_points_does_not_matter(residual):
    """Rows of Y move with their points; neither the next layer nor an adapter depends on the order of rows."""
    rng = RNG(7)
    params, H, order = tafe_parameters(rng), rng.normal(size=(2, 5, 6)), rng.permutation(4)
    before = tafe.forward(H, params, residual=residual)
    params["selectors"] = [[*mlp[:-1], tuple(x[order] for x in mlp[-1])] for mlp in params["selectors"]]
    params["layers"] = [{**a, "inducing_points": a["inducing_points"][order]} for a in params["layers"]]
    close(tafe.forward(H, params, residual=residual), before, 1e-9)


def test_different_readings_give_different_logits():
    """Except where they must agree."""
    rng = RNG(8)
    H = rng.normal(size=(3, 5, 6))
    one, three = tafe_parameters(rng, L=1), tafe_parameters(rng, L=3)
    close(tafe.forward(H, one), tafe.forward(H, one, residual="query"))
    readings = [tafe.forward(H, three, residual=r) for r in ("input", "query", "none")]
    copies = {**three, "selectors": three["selectors"] * 3}
    close(tafe.forward(H, copies, selector_kind="per_layer"), readings[0])
    separate = {**three, "selectors": tafe_parameters(rng, selectors=3)["selectors"]}
    readings += [tafe.forward(H, separate, selector_kind="per_layer")]
    readings += [tafe.forward(H, three, with_asrg=False), tafe.forward(H, three, with_tsa=False)]
    for i, a in enumerate(readings):
        assert all(np.abs(a - b).min() > 1e-4 for b in readings[:i])


@pytest.mark.parametrize("with_asrg", [True, False])
@pytest.mark.parametrize("with_tsa", [True, False])
def test_tafe_equals_a_second_version_in_torch(with_asrg, with_tsa):
    """Batched, with torch's kernels; f_D is tested above."""
    rng = RNG(10)
    params, H = tafe_parameters(rng), rng.normal(size=(3, 5, 6))
    weights, Y, states = to_torch(params), torch.tensor(H), [0.0, 0.0]

    def mlp(x, first, last):
        return linear(linear(x, *first).relu(), *last)

    def attend(query, memory, w):
        parts = query, linear(memory, w["key"]), linear(memory, w["value"])
        heads = scaled_dot_product_attention(*(x.unflatten(-1, (2, 3)).transpose(1, 2) for x in parts))
        return linear(heads.transpose(1, 2).flatten(2), w["out"])

    def norm(x, w):
        return layer_norm(x, (6,), w["norm"]["weight"], w["norm"]["bias"])

    z = torch.tensor(tafe.smooth_step(mlp(Y.flatten(1), *weights["selectors"][0]).numpy(), 6.0))[:, :, None]
    for i, layer in enumerate(weights["layers"]):
        query = layer["inducing_points"] * z if with_asrg else linear(Y, layer["query"])
        residual = query if with_asrg and i == 0 else Y
        Y = norm(residual + attend(query, Y, layer), layer)
        for t, w in enumerate(weights["adapters"][i]):
            states[t] = norm(states[t] + attend(w["indicator"].expand(3, 1, 6), Y, w), w)
    inputs = [state[:, 0] for state in states] if with_tsa else [Y.mean(dim=1)] * 2
    expected = torch.cat([mlp(x, *tower) for x, tower in zip(inputs, weights["towers"], strict=True)], dim=1)
    close(tafe.forward(H, params, gamma=6.0, with_asrg=with_asrg, with_tsa=with_tsa), expected, 1e-10)
