"""Metrics in parts: those of all rows, however they are spread; what a rank receives; a metric from outside."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import Tensor

from tests.metrics.seats import on_seats
from tests.metrics.test_ranking import WEIGHTS, scored_rows
from torchrec_mtl.errors import InputError
from torchrec_mtl.metrics import METRICS, Metric, Parts, calibration_curve
from torchrec_mtl.metrics.probability import curve_over_ranks
from torchrec_mtl.metrics.rows import checked_rows

RANKS = 64
SPREAD = st.lists(st.integers(0, 3), min_size=40, max_size=40)  # the rank of each row, of four


def spread(columns: list[Tensor], of_row: list[int]) -> list[list[Tensor]]:
    rank = torch.tensor(of_row[: len(columns[0])])
    return [[column[rank == each] for column in columns] for each in range(4)]


@pytest.mark.parametrize(
    "name", [name for name in METRICS if METRICS[name].score in ("ranking", "probability", "value")]
)
@given(rows=scored_rows(), dtype=st.sampled_from([torch.float32, torch.float64]), of_row=SPREAD, whole=st.booleans())
def test_a_metric_is_that_of_all_rows(
    name: str, rows: tuple[Tensor, ...], dtype: torch.dtype, of_row: list[int], whole: bool
) -> None:
    """To the last bit for AUC and GAUC with whole weights; ranks may have no rows, and classes may be absent."""
    kept = rows[2] > 0
    scores, labels, weights, groups = (column[kept] for column in rows)
    if whole:
        weights = (weights * 10).ceil() % 11 + 1
    metric = METRICS[name]
    columns = [scores.to(dtype), labels, *([groups] if metric.grouped else []), weights]
    if metric.parts.by == "any":
        columns[0] = columns[0].clamp(-50, 50)
    expected = metric.function(*columns)
    for value, _ in on_seats(metric.parts.over, spread(columns, of_row)):
        if whole and "auc" in name:
            assert repr(value) == repr(expected)
        assert value == pytest.approx(expected, rel=1e-12, abs=1e-12, nan_ok=True)


@given(scored_rows(), SPREAD, st.integers(1, 12))
def test_a_curve_is_that_of_all_rows(rows: tuple[Tensor, ...], of_row: list[int], num_bins: int) -> None:
    logits, labels, weights, _ = rows
    weights = (weights * 10).ceil() % 11  # a middle on an edge may fall on either side if it is rounded
    expected = calibration_curve(logits, labels, weights, num_bins)
    for curve, _ in on_seats(
        lambda ranks, *columns: curve_over_ranks(checked_rows(*columns), num_bins, ranks.sum),
        spread([logits, labels, weights], of_row),
    ):
        for found, wanted in zip(curve, expected, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-15)


def many_scores(kind: str, num_rows: int, generator: torch.Generator) -> Tensor:
    normal = torch.randn(num_rows, generator=generator, dtype=torch.float64)
    return {
        "continuous": normal.float(),
        "rare": (normal - 6).sigmoid().float(),
        "of 50 values": (normal * 10).round().clamp(-25, 24),
        "constant": torch.full_like(normal, -2.0),
        "one hot value": torch.where(normal < 1.3, -0.5, normal),
        "with one upper half": 1 + normal.sigmoid() * 2**-30,  # differing in their last 22 bits alone
        "two hot neighbours": 1 + (normal > 0) * 2**-52,
        "sorted": normal.sort().values,
    }[kind]


@pytest.mark.parametrize(
    "kind",
    ["continuous", "rare", "of 50 values", "constant", "one hot value", "with one upper half", "two hot neighbours",
     "sorted"],
)  # fmt: skip
def test_a_rank_receives_its_share_of_an_auc_whatever_the_scores(kind: str) -> None:
    """No more than an even share, and half of its first and of its last score, each two rows of a rank."""
    generator = torch.Generator().manual_seed(0)
    scores = many_scores(kind, RANKS * 300, generator)
    labels = (torch.rand(len(scores), generator=generator) < 0.05 + 0.1 * (scores > scores.mean())).float()
    weights = torch.randint(1, 4, scores.shape, generator=generator).float()
    columns = zip(*(column.tensor_split(RANKS) for column in (scores, labels, weights)), strict=True)
    found = on_seats(METRICS["auc"].parts.over, list(columns))
    assert {value for value, _ in found} == {METRICS["auc"].function(scores, labels, weights)}
    assert found[0][0] == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights), rel=1e-12)
    received = [seat.received for _, seat in found]
    assert sum(map(sum, received)) <= len(scores)
    assert all(each <= sum(map(sum, received)) / RANKS + 2 * RANKS for (each,) in received)


def test_a_rank_receives_its_share_of_the_groups() -> None:
    """Also where the ids of the groups have a factor in common, or are negative."""
    generator = torch.Generator().manual_seed(0)
    groups = (torch.randint(0, 8000, (RANKS * 300,), generator=generator) - 4000) * RANKS
    scores = torch.randn(len(groups), generator=generator)
    labels = (torch.rand(len(groups), generator=generator) < 0.4).float()
    columns = (scores, labels, groups, torch.ones_like(scores))
    split = zip(*(column.tensor_split(RANKS) for column in columns), strict=True)
    found = on_seats(METRICS["gauc"].parts.over, list(split))
    assert {value for value, _ in found} == {METRICS["gauc"].function(*columns)}
    assert sum(seat.received[0] for _, seat in found) == len(groups)
    assert max(seat.received[0] for _, seat in found) < 1.5 * 300


@pytest.mark.parametrize("seed", range(8))
def test_a_gauc_of_many_groups_has_the_same_bits_on_any_ranks(seed: int) -> None:
    """The sum over groups is exact before it is rounded, so its order does not matter."""
    generator = torch.Generator().manual_seed(seed)
    scores, groups = torch.randn(2000, generator=generator), torch.randint(0, 300, (2000,), generator=generator)
    columns = [scores, (scores + torch.randn(2000, generator=generator) > 1).float(), groups, torch.ones(2000)]
    found = {value for value, _ in on_seats(METRICS["gauc"].parts.over, spread(columns, [0, 1, 2, 3] * 500))}
    order = torch.randperm(2000, generator=generator)
    assert found == {METRICS["gauc"].function(*columns), METRICS["gauc"].function(*(c[order] for c in columns))}


def test_a_sum_over_rows_sends_none() -> None:
    columns = [torch.randn(9), torch.ones(9), torch.ones(9)]
    for name in ("log_loss", "normalized_entropy", "calibration"):
        assert all(not seat.received for _, seat in on_seats(METRICS[name].parts.over, spread(columns, [0, 1, 3] * 3)))


def test_parts_are_of_this_kind() -> None:
    with pytest.raises(InputError, match=r"`by` \(='scores'\) must be one of \['any', 'score', 'value', 'group'\]"):
        Parts(torch.stack, float, by="scores")
    for by, grouped in (("group", False), ("score", True)):
        with pytest.raises(InputError, match=rf"`parts` \(by '{by}'\) must suit `grouped` \(={grouped}\)"):
            Metric(math.fsum, "title", "higher", "ranking", grouped, Parts(torch.stack, float, by))


@pytest.mark.parametrize("weight", WEIGHTS[1:])
def test_ranks_without_a_row_have_no_metric(weight: float) -> None:
    nothing = [[torch.empty(0)] * 3] * 3
    one_class = [[torch.zeros(2), torch.ones(2), torch.full((2,), weight)], *nothing]
    for rows in (nothing, one_class):
        assert all(math.isnan(value) for value, _ in on_seats(METRICS["auc"].parts.over, rows))
