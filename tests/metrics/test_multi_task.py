"""Metrics of every task in every space: values, masked rows, wrong batches, and several processes."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor

from tests import processes
from tests.foreign_metric import KNOWN
from tests.metrics.funnel import TASKS, by_name, collect, funnel
from tests.support import TREE
from torchrec_mtl.errors import InputError
from torchrec_mtl.metrics import MultiTaskMetrics, calibration_curve
from torchrec_mtl.tasks import TaskChain

CUTS = ((700, 800), (1, 2), (0, 0), (1000, 1000))  # where the rows of a rank end
EXACT = ("num_rows", "positives", "share_above_previous")


def oracle(rows: dict[str, Tensor], t: int, after: bool) -> dict[str, float]:
    """The metrics of one task in one space by NumPy and scikit-learn, from probabilities."""
    logits, labels, weights, groups = (column.double().numpy() for column in rows.values())
    kept = weights[:, t] > 0
    probability = 1 / (1 + np.exp(-logits))
    prediction, scores = probability[:, t], {"": logits[:, t]}
    if after:
        kept &= (weights[:, t - 1] > 0) & (labels[:, t - 1] == 1)
        quotient = prediction / probability[:, t - 1]
        prediction = np.minimum(quotient, 1 - 1e-12)
        scores = {"conditional_": quotient.round(12), "marginal_": logits[:, t]}  # rounded: equal logits are a tie
    p, y, w, g = (x[kept] for x in (prediction, labels[:, t], weights[:, t], groups))
    rate = np.average(y, weights=w)
    loss = log_loss(y, p, sample_weight=w)
    users = [g == user for user in np.unique(g) if 0 < y[g == user].mean() < 1]
    sizes = [w[user].sum() for user in users]
    ranked = {}
    for name, score in scores.items():
        s = score[kept]
        aucs = [roc_auc_score(y[user], s[user], sample_weight=w[user]) for user in users]
        ranked[f"{name}auc"] = roc_auc_score(y, s, sample_weight=w)
        ranked[f"{name}gauc"] = np.average(aucs, weights=sizes)
    above = {"share_above_previous": (logits[kept, t] > logits[kept, t - 1]).mean()} if t else {}
    return {
        **ranked,
        **above,
        "num_rows": len(y),
        "positives": y.sum(),
        "log_loss": loss,
        "normalized_entropy": loss / -(rate * math.log(rate) + (1 - rate) * math.log(1 - rate)),
        "calibration": (w * p).sum() / (w * y).sum(),
    }


def test_every_metric_in_every_space() -> None:
    rows = funnel()
    expected = {
        (task, space, metric): value
        for t, task in enumerate(TASKS)
        for after, space in enumerate(TASKS.spaces(task))
        for metric, value in oracle(rows, t, bool(after)).items()
    }
    assert len(expected) == 43
    assert by_name(collect(rows).compute()) == pytest.approx(expected, rel=1e-8)


def test_a_row_with_a_masked_former_label_is_not_in_the_space_after_it() -> None:
    metrics = MultiTaskMetrics(TaskChain(["click", "purchase"]))
    metrics.update(
        torch.zeros(4, 2),
        torch.tensor([[1.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]),
        torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0], [1.0, 1.0]]),
    )
    values = by_name(metrics.compute())
    assert values["click", "impressions", "num_rows"] == 3
    assert values["purchase", "impressions", "num_rows"] == 4
    assert values["purchase", "after click", "num_rows"] == 2
    assert values["purchase", "after click", "positives"] == 1


def test_weights_and_groups_are_optional() -> None:
    rows = funnel()
    logits, labels = rows["logits"], rows["labels"].clamp(min=0)
    plain, weighted = MultiTaskMetrics(TASKS), MultiTaskMetrics(TASKS)
    plain.update(logits, labels)
    weighted.update(logits, labels, torch.ones_like(logits))
    assert plain.compute() == weighted.compute()
    assert {row["metric"] for row in plain.compute()} == {
        "num_rows", "positives", "share_above_previous", "auc", "conditional_auc", "marginal_auc", "log_loss",
        "normalized_entropy", "calibration",
    }  # fmt: skip


def test_a_space_with_one_class_is_nan() -> None:
    metrics = MultiTaskMetrics(TaskChain(["click", "purchase"]))
    metrics.update(torch.zeros(2, 2), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    values = by_name(metrics.compute())
    assert math.isnan(values["purchase", "after click", "conditional_auc"])
    assert values["purchase", "after click", "num_rows"] == 1
    assert values["click", "impressions", "auc"] == 0.5


def test_after_a_step_the_true_model_is_the_best_by_the_conditional_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    drivers = torch.randn(2, 200_000, generator=generator, dtype=torch.float64)
    click, conversion = (drivers[0] - 3).sigmoid(), (drivers[1] - 2).sigmoid()  # independent of each other
    happened = torch.rand(2, 200_000, generator=generator) < torch.stack([click, conversion])
    labels = happened.cumprod(0).T.float()
    blind = torch.full_like(click, 0.1)  # knows conversions as well, but no clicks
    values = {}
    for name, p_click in (("true", click), ("blind", blind)):
        metrics = MultiTaskMetrics(TaskChain(["click", "purchase"]))
        metrics.update(torch.stack([p_click, p_click * conversion], 1).logit(), labels)
        values[name] = {
            metric: value for (_, space, metric), value in by_name(metrics.compute()).items() if space == "after click"
        }
    clicked = labels[:, 0] == 1
    cvr_auc = roc_auc_score(labels[clicked, 1], conversion[clicked])
    assert values["true"]["conditional_auc"] == pytest.approx(cvr_auc, abs=1e-5)
    assert values["blind"]["conditional_auc"] == pytest.approx(cvr_auc, abs=1e-5)
    assert values["true"]["marginal_auc"] < values["blind"]["marginal_auc"] - 0.05
    assert values["true"]["share_above_previous"] == 0


def test_the_conditional_score_is_not_clipped() -> None:
    metrics = MultiTaskMetrics(TaskChain(["click", "purchase"]))
    logits = torch.tensor([[0.0, 1.0], [0.0, 2.0], [0.0, -1.0], [-200.0, -200.001]])  # two rows with p_t > p_{t-1}
    metrics.update(logits, torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [1.0, 0.0]]))
    values = by_name(metrics.compute())
    assert values["purchase", "after click", "conditional_auc"] == 1.0  # clipped, the first two would be tied
    assert values["purchase", "after click", "share_above_previous"] == 0.5
    assert ("click", "impressions", "share_above_previous") not in values


def test_siblings_may_both_happen_and_have_spaces_of_their_own() -> None:
    metrics = MultiTaskMetrics(TREE)
    labels = torch.tensor([[1.0, 1, 1, 0], [1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]])
    metrics.update(torch.randn(4, 4), labels)
    rows = {(r["task"], r["space"]): r["value"] for r in metrics.compute() if r["metric"] == "num_rows"}
    assert rows["like", "after click"] == rows["buy", "after click"] == 3
    assert rows["back", "after buy"] == 2
    assert ("back", "after click") not in rows
    assert [space for task, space in rows if task == "click"] == ["impressions"]


def test_order_of_rows_and_size_of_batches_do_not_matter() -> None:
    rows = funnel()
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    moved = {name: column[order] for name, column in rows.items()}
    first, second = collect(rows).compute(), collect(moved, batch_size=77).compute()
    assert by_name(first) == pytest.approx(by_name(second), rel=1e-12)
    rows["weights"], moved["weights"] = ((columns["weights"] > 0).float() for columns in (rows, moved))
    first, second = collect(rows).compute(), collect(moved).compute()
    for metric in ("auc", "conditional_auc", "marginal_auc", "gauc", "num_rows", "positives", "share_above_previous"):
        assert [r for r in first if r["metric"] == metric] == [r for r in second if r["metric"] == metric]


def test_batches_are_copied_and_reset_forgets_them() -> None:
    rows = funnel(50)
    metrics = collect(rows)
    before = metrics.compute()
    for column in rows.values():
        column.zero_()
    assert metrics.compute() == before
    metrics.reset()
    with pytest.raises(InputError, match="metrics of no rows are undefined"):
        metrics.compute()
    metrics.update(*funnel(50).values())
    assert metrics.compute() == before


def test_calibration_curves_leave_masked_rows_out() -> None:
    rows = funnel()
    curves = collect(rows).calibration_curves(num_bins=5)
    assert list(curves) == list(TASKS)
    for t, task in enumerate(TASKS):
        kept = rows["weights"][:, t] > 0
        logits, labels, weights = (rows[name][kept, t] for name in ("logits", "labels", "weights"))
        for column, expected in zip(curves[task], calibration_curve(logits, labels, weights, 5), strict=True):
            torch.testing.assert_close(column, expected, rtol=1e-12, atol=0)


def test_logits_may_need_gradients() -> None:
    metrics = MultiTaskMetrics(TASKS)
    metrics.update(torch.zeros(2, 3, requires_grad=True), torch.zeros(2, 3))
    assert metrics.compute()[0]["value"] == 2


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"logits": torch.zeros(4)}, r"`logits` must have shape \[4, 3\], not \[4\]"),
        ({"logits": torch.zeros(4, 2)}, r"`logits` must have shape \[4, 3\], not \[4, 2\]"),
        ({"logits": torch.full((4, 3), math.nan)}, r"`logits` must be finite, but entry \[0, 0\] is nan"),
        ({"labels": torch.zeros(3, 3)}, r"`labels` must have shape \[4, 3\], not \[3, 3\]"),
        ({"labels": torch.full((4, 3), 2.0)}, r"`labels` must be 0 or 1, but entry \[0, 0\] is 2.0"),
        ({"weights": torch.zeros(4)}, r"`weights` must have shape \[4, 3\], not \[4\]"),
        ({"weights": torch.full((4, 3), -1.0)}, r"`weights` must be finite and not negative, .* is -1.0"),
        ({"groups": None}, r"`groups` are not given, but `with_groups` is True"),
        ({"groups": torch.zeros(3).long()}, r"`groups` must have shape \[4\], not \[3\]"),
        ({"groups": torch.zeros(4)}, r"`groups` must be integer ids, not torch.float32"),
    ],
)
def test_wrong_batches_change_nothing(changed: dict[str, Tensor | None], sentence: str) -> None:
    batch = {"logits": torch.zeros(4, 3), "labels": torch.zeros(4, 3), "groups": torch.zeros(4).long()}
    metrics = MultiTaskMetrics(TASKS, with_groups=True)
    metrics.update(**batch)
    with pytest.raises(InputError, match=sentence):
        metrics.update(**(batch | changed))
    assert metrics.compute()[0]["value"] == 4


def test_groups_without_with_groups_raise() -> None:
    with pytest.raises(InputError, match="`groups` are given, but `with_groups` is False"):
        MultiTaskMetrics(TASKS).update(torch.zeros(1, 3), torch.zeros(1, 3), groups=torch.zeros(1).long())


def _rank(folder: Path) -> None:
    rank, ranks, rows = dist.get_rank(), dist.get_world_size(), funnel()
    results, curves = [], []
    for weights in (rows["weights"], rows["weights"].ceil()):
        for cuts in CUTS:
            metrics = MultiTaskMetrics(TASKS, with_groups=True, metrics=KNOWN)
            metrics.update(*(c.tensor_split(cuts[: ranks - 1])[rank] for c in (rows | {"weights": weights}).values()))
            results.append(by_name(metrics.compute()))
        curves.append(metrics.calibration_curves(num_bins=7))
    with pytest.raises(InputError, match="metrics of no rows"):
        MultiTaskMetrics(TASKS).compute()
    alone = [dist.new_group([other]) for other in range(ranks)][rank]
    results.append(by_name(collect(rows).compute(alone)))
    torch.save((results, curves), folder / f"{rank}.pt")


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_many_processes_equal_one(num_ranks: int, tmp_path: Path) -> None:
    """To the last bit where the docstring says so; a metric that has no parts is among them."""
    rows = funnel()
    whole = rows | {"weights": rows["weights"].ceil()}
    processes.run(_rank, num_ranks, tmp_path)
    for rank in range(num_ranks):
        (*results, alone), curves = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert alone == by_name(collect(rows).compute())
        assert len(results) == 2 * len(CUTS)
        for columns, of_columns, curve in (
            (rows, results[: len(CUTS)], curves[0]),
            (whole, results[len(CUTS) :], curves[1]),
        ):
            metrics = MultiTaskMetrics(TASKS, with_groups=True, metrics=KNOWN)
            metrics.update(*columns.values())
            expected = by_name(metrics.compute())
            exact = {key for key in expected if key[2] in EXACT or (columns is whole and key[2].endswith("auc"))}
            assert len(exact) == (28 if columns is whole else 14)
            for result in of_columns:
                assert result == pytest.approx(expected, rel=1e-12)
                assert {key: result[key] for key in exact} == {key: expected[key] for key in exact}
            for task, found in metrics.calibration_curves(num_bins=7).items():
                for column, wanted in zip(curve[task], found, strict=True):
                    torch.testing.assert_close(column, wanted, rtol=1e-12, atol=0)
