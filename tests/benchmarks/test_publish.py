"""Tables and links of the texts follow a comparison."""

import pytest

from benchmarks import publish

COLUMNS = ("model", "title", "ablation_of", "task", "metric", "mean", "std", "difference", "p_holm")


def rows(*lines):
    return [dict(zip(COLUMNS, line, strict=True)) for line in lines]


OLD = rows(
    ("mmoe", "MMoE", "", "buy", "auc", "0.71", "0.01", "", ""),
    ("tafe", "TAFE", "", "buy", "auc", "0.70", "0.02", "", ""),
)
NEW = rows(
    ("tafe", "TAFE", "", "buy", "auc", "0.75004", "0.00104", "0.01", "0.3"),
    ("tafe", "TAFE", "", "buy", "conditional_auc", "0.6", "0.01", "0.01", "0.3"),
    ("mmoe", "MMoE", "", "buy", "auc", "0.74", "0.002", "", ""),
    ("aitm", "AITM", "", "buy", "auc", "0.75", "0.003", "-0.01", "0.04"),
    ("tafe_mask", "mask", "tafe", "buy", "auc", "0.76", "0.001", "0.0123", "0.0421"),
    ("tafe_keys", "keys", "tafe", "buy", "auc", "0.75004", "0.00104", "0", ""),
)


def test_a_table_with_bold_has_every_system():
    text = "before\n\n| test AUC, all impressions | buy |\n|---|---|\n| MMoE | **.7100** ± .0100 |\n\nafter\n"
    lines = publish.with_tables(text, NEW).splitlines()
    assert lines[4:7] == ["| TAFE | **.7500** ± .0010 |", "| MMoE | .7400 ± .0020 |", "| AITM | **.7500** ± .0030 |"]
    assert (lines[0], lines[-1]) == ("before", "after")


def test_a_table_without_keeps_its_lines():
    text = "| test AUC, all impressions | buy |\n|---|---|\n| MMoE | 0.7100 ± 0.0100 |"
    assert publish.with_tables(text, NEW).splitlines()[2:] == ["| MMoE | 0.7400 ± 0.0020 |"]


def test_one_thing_changed():
    text = "| one thing changed in TAFE, test AUC, all impressions | buy |\n|---|---|\n| TAFE | 1 |"
    assert publish.with_tables(text, NEW).splitlines()[2:] == [
        "| TAFE | .7500 ± .0010 |",
        "| mask | .7600 ± .0010 (+.0123, p .042) |",
        "| keys | .7500 ± .0010 (+.0000, p not defined) |",
    ]


def test_links_go_where_the_same_is_said():
    text = "[.71](comparison.csv#L2), [0.7000 ± 0.0200](a/comparison.csv#L3), [.7100](comparison.csv#L2)"
    expected = "[.74](comparison.csv#L4), [0.7500 ± 0.0010](a/comparison.csv#L2), [.7400](comparison.csv#L4)"
    assert publish.with_links(text, "comparison.csv", OLD, NEW) == expected


def test_links_to_another_comparison_stay():
    text = "[.71](whole/comparison.csv#L2), [.71](../whole/comparison.csv#L2), [.71](a_whole/comparison.csv#L2)"
    expected = "[.74](whole/comparison.csv#L4), [.74](../whole/comparison.csv#L4), [.71](a_whole/comparison.csv#L2)"
    assert publish.with_links(text, "whole/comparison.csv", OLD, NEW) == expected


def test_what_is_no_longer_said_is_told():
    with pytest.raises(SystemExit, match="no line of mmoe, buy, auc"):
        publish.with_links("[.7100](comparison.csv#L2)", "comparison.csv", OLD, NEW[:1])
