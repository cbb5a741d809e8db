"""What the page on entire-space models says, beside its figures, is so in the rows that it links to."""

import csv
from pathlib import Path

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def rows_of(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((RESULTS / name).read_text(encoding="utf-8").splitlines()))


ROWS = {(row["funnel"], row["model"]): row for row in rows_of("simulated_funnels.csv")}
FORM = ("esmm", "escm2_ips", "escm2_dr", "esmm, clicked rows")
RATIOS = ("single_task", "LightGBM, entire space", "logistic regression, entire space")


def figure(funnel: str, model: str, name: str = "error") -> float:
    return float(ROWS[funnel, model][name])


def models(funnel: str) -> list[str]:
    """In the order of the error."""
    return sorted((model for kind, model in ROWS if kind == funnel), key=lambda model: figure(funnel, model))


def test_models_of_the_conditional_probability_are_nearest_under_strong_selection():
    for funnel in ("strong", "strong, hidden"):
        assert set(models(funnel)[:4]) == set(FORM)
    assert round(figure("strong", "esmm") / figure("strong", "shared_bottom"), 1) == 0.7
    assert abs(figure("strong", "esmm", "bias")) < 0.03 < figure("strong", "esmm, clicked rows", "bias")


def test_ratios_of_models_that_share_nothing_are_no_better_than_a_constant():
    for funnel in ("strong", "strong, hidden", "interactions"):
        assert all(figure(funnel, model) >= figure(funnel, "constant") for model in RATIOS)
    assert figure("strong", "LightGBM, entire space", "correlation") < 0


def test_the_regression_ranks_as_well_as_esmm_where_it_can_express_the_funnel():
    regression = "logistic regression, clicked rows"
    difference = figure("strong", regression, "correlation") - figure("strong", "esmm", "correlation")
    assert abs(difference) < 0.02
    assert 0.45 < figure("strong", regression, "bias") < 0.55


def test_escm2_is_nearest_to_what_would_be_bought_had_all_been_clicked():
    def error(model: str) -> float:
        return figure("strong, hidden", model, "error if clicked")

    assert set(sorted(models("strong, hidden"), key=error)[:2]) == {"escm2_ips", "escm2_dr"}
    assert max(error("dcmt"), error("aitm"), error("esmm")) < error("esmm, clicked rows")
    assert all(figure("strong, hidden", model, "bias") < 0 for model in ("escm2_ips", "escm2_dr"))


def test_sharing_pays_with_interactions_and_every_model_is_too_high():
    assert models("interactions")[:2] == ["esmm", "mmoe"]
    followers = ("escm2_ips", "escm2_dr", "ddpo", "shared_bottom", "dbmtl", "esmm, clicked rows")
    assert all(figure("interactions", model) < figure("interactions", "esmm") + 4 for model in followers)
    assert all(figure("interactions", model) > figure("interactions", "constant") for model in ("dcmt", "bpcm"))
    assert min(figure("interactions", model, "bias") for model in models("interactions")) > 0.1


def test_a_regression_is_nearest_where_effects_add_up_and_purchases_are_few():
    regression = "logistic regression, clicked rows"
    for funnel in ("mild", "rare", "delays"):
        assert models(funnel)[0] == regression
    assert models("rare")[1:4] == ["dcmt", "LightGBM, clicked rows", "ddpo"]
    assert (
        min((name for kind, name in ROWS if kind == "rare"), key=lambda m: figure("rare", m, "buy error")) == regression
    )
    constant = figure("rare", "constant")
    assert all(figure("rare", model) < constant for model in ("esmm", "escm2_ips", "escm2_dr"))
    assert all(figure("rare", model) > constant for model in ("shared_bottom", "mmoe", "tafe"))
    nearer = max(figure("mild", model) for model in ("escm2_ips", "escm2_dr", "esmm, clicked rows"))
    assert nearer < min(figure("mild", model) for model in ("esmm", "shared_bottom"))


def test_with_a_hidden_driver_what_is_too_low_is_nearer_to_what_would_be_bought():
    funnel, regression = "mild, hidden", "logistic regression, clicked rows"
    assert models(funnel)[0] == regression

    def error(model: str) -> float:
        return figure(funnel, model, "error if clicked")

    nearest = sorted(models(funnel), key=error)[:3]
    assert set(nearest) == {"aitm", "escm2_dr", "escm2_ips"}
    assert error(nearest[2]) - error(nearest[0]) < figure(funnel, "aitm", "error if clicked, deviation")
    assert error(nearest[2]) < min(error(regression), error("esmm"))
    assert all(figure(funnel, model, "bias") < 0 for model in nearest)


def test_three_steps_and_other_numbers_of_rows():
    for funnel in ("deep", "few", "many"):
        assert models(funnel)[0] == "logistic regression, clicked rows"
    assert models("deep")[1:3] == ["esmm, clicked rows", "shared_bottom, local space"]
    assert figure("deep", "esmm") > figure("deep", "shared_bottom, local space")
    assert round(figure("few", models("few")[0]) / figure("few", "shared_bottom"), 1) == 0.5
    assert abs(figure("few", "shared_bottom") - figure("few", "constant")) < 1
    assert models("few")[1:6] == ["LightGBM, clicked rows", "dcmt", "escm2_dr", "escm2_ips", "esmm"]
    assert figure("few", "single_task") > figure("few", "constant")
    gained = [round(figure("many", model) / figure("mild", model), 1) for model in ("ddpo", "shared_bottom")]
    assert gained == [0.5, 0.9]
    assert models("many")[1:5] == ["ddpo", "dcmt", "escm2_dr", "escm2_ips"]


def test_tafe_is_behind_every_model_that_shares_on_all_kinds_of_funnels_but_two():
    alone = {"constant", "single_task", "tafe"}
    kinds = {kind for kind, _ in ROWS}
    assert len(kinds) == 10
    better = [
        kind
        for kind in kinds
        if any(
            figure(kind, model) > figure(kind, "tafe")
            for model in models(kind)
            if model not in alone and ", clicked" not in model and ", entire" not in model
        )
    ]
    assert set(better) == {"interactions", "few"}


def test_late_labels_make_every_model_too_low():
    trained = [model for model in models("delays") if model != "constant"]
    assert all(figure("delays", model, "clicked bias") < -0.1 for model in trained)


def test_it_is_tafes_form_and_not_its_gate_that_is_far_from_the_truth():
    rows = {row["model"]: row for row in rows_of("simulated_funnels_tafe.csv")}
    tafe, conditional = "as compared", "conditional towers"

    def found(model: str, name: str = "error") -> float:
        return float(rows[model][name])

    assert max(found(model, "buy auc, deviation") for model in rows) <= 0.003
    assert found(tafe, "buy auc, deviation") <= 0.001
    for gate in ("gate soft to the end", "gate closed at half", "points as a mask", "no gate"):
        assert found(gate) > found(tafe) - found(gate, "error, deviation")
    assert found(tafe, "soft") > 0.99
    assert 0.45 < found(conditional) / found(tafe) < 0.55
    assert found(conditional, "correlation") > found("Shared-Bottom", "correlation")
    assert found(tafe, "agreement") > 0.5 > 0.05 > found(tafe, "correlation")
    for simpler in ("one layer", "4 points", "no indicators"):
        assert found(simpler) < found(tafe) - found(tafe, "error, deviation")
        assert found(simpler, "correlation") > 0.2
    assert found("900 steps") < found(tafe) - found(tafe, "error, deviation")
    assert max(found(model, "correlation") for model in ("64 points", "900 steps")) < 0.05
