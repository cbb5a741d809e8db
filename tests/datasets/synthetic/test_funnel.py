from dataclasses import replace
from itertools import product

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import OneHotEncoder

from torchrec_mtl.datasets import SyntheticFunnel
from torchrec_mtl.errors import InputError

SMALL = SyntheticFunnel(base_rates=(0.4, 0.15), field_sizes=(6, 4, 5), num_pairs=1)


def logits(funnel: SyntheticFunnel, rows: pl.DataFrame) -> np.ndarray:
    probabilities = funnel.conditional_probabilities(rows)
    return np.log(probabilities / (1 - probabilities))


def frequencies(size: int, exponent: float) -> np.ndarray:
    weights = np.array([1 / (v + 1) ** exponent for v in range(size)])
    return weights / weights.sum()


@pytest.mark.parametrize("base_rates", [(0.3,), (0.3, 0.1), (0.5, 0.3, 0.2, 0.1, 0.02)])
def test_labels_form_a_funnel_with_the_base_rates(base_rates: tuple[float, ...]) -> None:
    num_rows = 100_000
    funnel = SyntheticFunnel(base_rates)
    rows, tasks = funnel.sample(num_rows), list(funnel.schema.tasks)
    assert len(tasks) == len(base_rates)
    labels = rows.select(tasks).to_numpy()
    assert set(np.unique(labels)) == {0, 1}
    assert (np.diff(labels, axis=1) <= 0).all()
    for task, rate in zip(tasks, base_rates, strict=True):
        # the intercepts are solved on a sample of about this size
        assert abs(rows[task].mean() - rate) < 5 * np.sqrt(2 * rate * (1 - rate) / num_rows)


def test_labels_follow_the_probabilities_in_every_cell() -> None:
    """Each combination of ids is a binomial experiment."""
    rows = SMALL.sample(200_000)
    fields = list(SMALL.schema.field_names)
    for _, cell in rows.group_by(fields):
        before = cell
        for task, conditional in zip(SMALL.schema.tasks, SMALL.conditional_probabilities(cell)[0], strict=True):
            deviation = np.sqrt(conditional * (1 - conditional) * before.height)
            assert abs(before[task].sum() - conditional * before.height) <= 5 * deviation
            before = before.filter(pl.col(task) == 1)
        marginal = SMALL.conditional_probabilities(cell).prod(axis=1)
        np.testing.assert_allclose(cell["p_step_2"], marginal, rtol=1e-12)


@pytest.mark.parametrize("exponent", [0.0, 1.1, 1.5])
def test_ids_follow_the_power_law(exponent: float) -> None:
    num_rows = 100_000
    rows = SyntheticFunnel(field_sizes=(300, 7), num_pairs=1, list_size=9, zipf_exponent=exponent).sample(num_rows)
    lists = rows["list"]
    assert sorted(lists.list.len().unique()) == [0, 1, 2, 3, 4]
    for ids, size in ((rows["field_1"], 300), (rows["field_2"], 7), (lists.explode().drop_nulls(), 9)):
        expected = len(ids) * frequencies(size, exponent)
        counts = np.bincount(ids.to_numpy(), minlength=size)
        assert len(counts) == size
        assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()
    assert abs(np.corrcoef(rows["field_1"], rows["field_2"])[0, 1]) < 5 / np.sqrt(num_rows)


@pytest.mark.parametrize("interaction", [0.0, 1.0])
def test_interactions_are_pure(interaction: float) -> None:
    """Over all possible rows, weighted by probability, no single id changes the mean of an interaction."""
    sizes = (6, 4, 5)
    funnel = SyntheticFunnel(
        (0.4, 0.15), sizes, num_pairs=1, interaction=interaction, correlation=0.0, signal=2.0, zipf_exponent=1.1
    )
    rows = pl.DataFrame(list(product(*map(range, sizes))), schema=list(funnel.schema.field_names), orient="row")
    id_weights = [frequencies(size, 1.1)[rows[name]] for name, size in zip(rows.columns, sizes, strict=True)]
    weights, values = np.prod(id_weights, axis=0), logits(funnel, rows)
    mean = np.average(values, 0, weights)
    np.testing.assert_allclose(np.average((values - mean) ** 2, 0, weights), 2.0**2, rtol=1e-6)
    for name in rows.columns:
        given = [rows[name].to_numpy() == i for i in range(rows[name].n_unique())]
        effects = np.array([np.average(values[kept], 0, weights[kept]) - mean for kept in given])
        assert np.allclose(effects, 0, atol=1e-6) == (interaction == 1.0)


@pytest.mark.parametrize("correlation", [0.0, 0.6, 1.0])
def test_steps_correlate(correlation: float) -> None:
    funnel = SyntheticFunnel(field_sizes=(500,) * 30, num_pairs=15, correlation=correlation, zipf_exponent=0.5)
    measured = np.corrcoef(logits(funnel, funnel.sample(20_000)).T)
    np.testing.assert_allclose(measured[np.triu_indices(3, 1)], correlation, atol=0.1)


def linear_model_auc(funnel: SyntheticFunnel) -> tuple[float, float]:
    """Returns the test AUC on the first task of logistic regression on one-hot ids, and of the true probabilities."""
    train, test = funnel.sample(60_000, seed=0), funnel.sample(100_000, seed=1)
    encoder = OneHotEncoder(handle_unknown="ignore")
    features = encoder.fit_transform(train.select(funnel.schema.field_names).to_numpy())
    model = LogisticRegression(max_iter=200).fit(features, train["step_1"])
    scores = model.predict_proba(encoder.transform(test.select(funnel.schema.field_names).to_numpy()))[:, 1]
    return roc_auc_score(test["step_1"], scores), roc_auc_score(test["step_1"], test["p_step_1"])


def test_a_linear_model_reaches_the_oracle_only_without_interactions() -> None:
    sizes = (30, 20, 20, 10, 10, 10)
    linear, oracle = linear_model_auc(SyntheticFunnel((0.3,), sizes, interaction=0.0))
    assert oracle - 0.005 < linear < oracle
    linear, oracle = linear_model_auc(SyntheticFunnel((0.3,), sizes, interaction=0.4))
    assert 0.55 < linear < oracle - 0.02
    linear, oracle = linear_model_auc(SyntheticFunnel())
    assert 0.55 < linear < oracle - 0.02
    assert 0.7 < oracle < 0.85


def test_seeds_decide_the_rows() -> None:
    assert SMALL.sample(50, seed=3).equals(SMALL.sample(50, seed=3))
    assert SyntheticFunnel([0.4, 0.15], [6, 4, 5], num_pairs=1).sample(50).equals(SMALL.sample(50))
    assert not SMALL.sample(50, seed=3).equals(SMALL.sample(50, seed=4))
    other = replace(SMALL, seed=1)
    assert not np.allclose(*(funnel.conditional_probabilities(SMALL.sample(50)) for funnel in (SMALL, other)))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"base_rates": ()}, r"`base_rates` \(=\[\]\) must fall"),
        ({"base_rates": (0.1, 0.2)}, "must fall"),
        ({"base_rates": (1.0, 0.2)}, "the first below 1"),
        ({"base_rates": (0.5, 0.0)}, "the last above 0"),
        ({"base_rates": (0.5, float("nan"))}, "must fall"),
        ({"field_sizes": (9,)}, r"`field_sizes` \(=\[9\]\) must be two or more"),
        ({"field_sizes": (9, 1)}, "at least 2"),
        ({"num_pairs": 0}, r"`num_pairs` \(=0\) must be from 1 to half"),
        ({"field_sizes": (9, 9, 9), "num_pairs": 2}, r"half the fields \(3\)"),
        ({"list_size": 1}, r"`list_size` \(=1\) must be 0 or at least 2"),
        ({"interaction": 1.5}, r"`interaction` \(=1.5\) must be"),
        ({"correlation": -0.1}, r"`correlation` \(=-0.1\) must be"),
        ({"signal": float("nan")}, r"`signal` \(=nan\) must be at least 0"),
        ({"zipf_exponent": -1}, r"`zipf_exponent` \(=-1\) must be at least 0"),
        ({"seed": -1}, r"`seed` \(=-1\) must be at least 0"),
    ],
)
def test_wrong_arguments(arguments: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        SyntheticFunnel(**arguments)


def test_a_sample_needs_a_row() -> None:
    with pytest.raises(InputError, match=r"`num_rows` \(=0\) must be at least 1"):
        SMALL.sample(0)
