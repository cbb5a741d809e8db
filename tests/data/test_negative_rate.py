"""Negatives that are left out: which, with what weights, and what that costs."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrec_mtl.data import BatchLoader, Field, Schema, Split
from torchrec_mtl.errors import InputError
from torchrec_mtl.tasks import Task, TaskForest

TASKS = TaskForest(Task("click"), Task("buy", after="click"), Task("like"))  # two roots
SCHEMA = Schema("shop", [Field("row", 2**20)], TASKS)


def make_split(num_rows, seed=0, weighted=True, rate=0.1):
    rng = np.random.default_rng(seed)
    labels = (rng.random((num_rows, 3)) < rate).astype(np.float32)
    labels[:, 1] *= labels[:, 0]
    weights = rng.integers(0, 3, labels.shape).astype(np.float32) if weighted else None
    return Split(SCHEMA, {"row": np.arange(num_rows)}, labels, weights=weights)


def rows_of(batch):
    return batch.sparse_features["row"].values().tolist()


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 200), st.integers(1, 4), st.integers(1, 40), st.floats(0.05, 0.95), st.integers(0, 2**40), st.data()
)
def test_the_rows_of_a_step_are_the_same_on_any_number_of_ranks_from_any_position(
    num_rows, world_size, batch_size, negative_rate, seed, data
):
    split, epoch = make_split(num_rows, seed % 7, weighted=data.draw(st.booleans())), data.draw(st.integers(0, 3))
    options = {"shuffle": data.draw(st.booleans()), "seed": seed, "negative_rate": negative_rate}
    alone = BatchLoader(split, batch_size * world_size, **options)
    alone.set_epoch(epoch)
    whole = list(alone)
    first = data.draw(st.integers(0, len(whole) - 1))
    ranks = []
    for rank in range(world_size):
        loader = BatchLoader(split, batch_size, **options, rank=rank, world_size=world_size)
        loader.load_state_dict({**alone.state_dict(), "epoch": epoch, "step": first})
        rows = [part.tolist() for part in loader.rows()][first:]
        ranks.append(list(loader))
        assert [rows_of(batch) for batch in ranks[-1]] == rows
    for wanted, *of_step in zip(whole[first:], *ranks, strict=True):
        assert len({len(batch.labels) for batch in of_step}) == 1
        assert {batch.num_rows_of_all for batch in of_step} == {wanted.num_rows_of_all}
        assert list(itertools.chain(*map(rows_of, of_step))) == rows_of(wanted)
        known = [batch.weights[: len(batch.labels) - batch.num_padded] for batch in of_step]
        assert torch.cat(known).equal(wanted.weights)
    assert sum(batch.num_rows_of_all for batch in whole) == num_rows


def test_rows_with_a_known_positive_stay_as_they_are_and_others_count_for_those_left_out():
    split, drawn = make_split(4000), 0.25
    batch = next(iter(BatchLoader(split, 4000, negative_rate=drawn)))
    kept, given_weights = rows_of(batch), torch.from_numpy(split.arrays["weights"])
    positive = ((split.arrays["labels"] == 1) & (split.arrays["weights"] != 0)).any(1)
    assert set(np.flatnonzero(positive)) <= set(kept)
    times = torch.where(torch.from_numpy(positive), 1.0, 1 / drawn)[:, None]
    assert batch.weights.equal((given_weights * times)[kept])
    negatives = (~positive).sum()
    assert abs(len(kept) - positive.sum() - drawn * negatives) < 5 * np.sqrt(negatives * drawn * (1 - drawn))


def test_over_epochs_and_seeds_each_row_counts_once_in_the_mean():
    """And rows are drawn one by one: two rows are kept together as often as independent draws are."""
    split, total, drawn, draws = make_split(100, rate=0.05), torch.zeros(100, 3), [], 600
    for seed in range(2):
        loader = BatchLoader(split, 100, seed=seed, negative_rate=0.2)
        for epoch in range(draws // 2):
            loader.set_epoch(epoch)
            batch = next(iter(loader))
            total[rows_of(batch)] += batch.weights
            drawn.append(np.isin(np.arange(100), rows_of(batch)))
    mean, wanted = total / draws, torch.from_numpy(split.arrays["weights"])
    spread = wanted * np.sqrt((1 - 0.2) / 0.2 / draws)
    assert ((mean - wanted).abs() <= 5 * spread + 1e-6).all()
    drawn = np.array(drawn, dtype=float)
    free = drawn.std(0) > 0
    together = np.corrcoef(drawn[:, free].T)
    assert free.sum() > 80
    assert np.abs(together - np.eye(free.sum())).max() < 6 / np.sqrt(draws)


def test_a_step_of_which_nothing_is_kept_adds_nothing():
    split = Split(SCHEMA, {"row": np.arange(40)}, np.zeros((40, 3)))
    for batch in BatchLoader(split, 1, negative_rate=0.01):
        assert len(batch.labels) == batch.num_rows_of_all == 1
        assert batch.weights.tolist() in ([[0.0] * 3], [[100.0] * 3])


def test_without_a_rate_batches_are_untouched():
    batch = next(iter(BatchLoader(make_split(50, weighted=False), 50, negative_rate=1.0)))
    assert (len(batch.labels), batch.weights) == (50, None)


@pytest.mark.parametrize("rate", [0.0, 1.5, -0.1, float("nan")])
def test_a_rate_that_is_none_raises(rate):
    with pytest.raises(InputError, match=r"`negative_rate` \(=.*\) must be above 0 and at most 1"):
        BatchLoader(make_split(5), 2, negative_rate=rate)


def test_a_position_needs_the_same_rate():
    split = make_split(50)
    state = BatchLoader(split, 5, negative_rate=0.5).state_dict()
    with pytest.raises(InputError, match=r"`negative_rate` \(=1.0\) must be that of the saved position \(0.5\)"):
        BatchLoader(split, 5).load_state_dict(state)


def variances(click_rate, negative_rate):
    """Asymptotic variances of a logistic regression's slope: from all rows, with weights, with corrected logits."""
    x = np.linspace(-6, 6, 20_001)
    mass = np.exp(-(x**2) / 2) / np.exp(-(x**2) / 2).sum()
    low, high = -30.0, 10.0
    for _ in range(80):
        middle = (low + high) / 2
        rare = mass @ (1 / (1 + np.exp(-middle - x))) < click_rate
        low, high = (middle, high) if rare else (low, middle)
    p, columns = 1 / (1 + np.exp(-low - x)), np.stack([np.ones_like(x), x])

    def information(times):
        return (columns * mass * times) @ columns.T

    bread = np.linalg.inv(information(p * (1 - p)))
    meat = information(p * (1 - p) ** 2 + (1 - p) * p**2 / negative_rate)
    share = p + negative_rate * (1 - p)  # of the rows that are kept
    corrected = np.linalg.inv(information(share * (p / share) * (1 - p / share)))
    return bread[1, 1], (bread @ meat @ bread)[1, 1], corrected[1, 1]


def test_weights_cost_what_the_docstring_says():
    of_all, weighted, corrected = variances(0.01, 0.1)
    assert weighted / corrected == pytest.approx(1.07, abs=0.005)
    assert weighted / of_all == pytest.approx(1.38, abs=0.005)


def test_with_a_free_probability_weights_and_corrected_logits_are_the_same():
    """A click rate of 3 of 3 + 40 kept rows is that of 3 of 3 + 400, and log odds of 3 / 40 less log 10 are its."""
    weighted = 3 / (3 + 40 / 0.1)
    assert 1 / (1 + np.exp(-(np.log(3 / 40) + np.log(0.1)))) == pytest.approx(weighted)
