"""What TAFE's section 2 says of any funnel, by exact enumeration; and that every equation of both papers has a place.

A funnel is a table of counts: how many rows of each x reach exactly depth 0, 1, ..., T.
"""

import re
from fractions import Fraction
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.losses.strategies import few_examples
from torchrec_mtl import TaskChain
from torchrec_mtl.modules import MarginalFromConditional

ROOT = Path(__file__).parents[2]
EQUATIONS = {"BPCM": range(2, 15), "TAFE": range(1, 30)}  # the text of BPCM has no (1)
CITED = re.compile(r"(BPCM|TAFE)\W+(?:\w+ ){0,3}?eqs?\. \((\d+)\)(?:(?:-| to )\((\d+)\))?")

depths = st.integers(2, 4).flatmap(lambda tasks: st.lists(st.integers(1, 40), min_size=tasks + 1, max_size=tasks + 1))


def joint(counts: list[int]) -> dict[tuple[int, ...], Fraction]:
    """P(t_1, ..., t_T | x): every outcome of the tasks, also those that cannot be."""
    tasks = len(counts) - 1
    of_depth = {tuple(int(t < depth) for t in range(tasks)): count for depth, count in enumerate(counts)}
    return {outcome: Fraction(of_depth.get(outcome, 0), sum(counts)) for outcome in product((0, 1), repeat=tasks)}


def probability(P: dict[tuple[int, ...], Fraction], *values: int | None) -> Fraction:  # noqa: N803
    """The probability of the values of the first tasks; None stands for any."""
    return sum(
        (p for outcome, p in P.items() if all(v in (None, o) for v, o in zip(values, outcome, strict=False))),
        Fraction(0),
    )


@few_examples
@given(depths)
def test_a_step_happens_with_all_before_it_and_no_more_often(counts: list[int]) -> None:
    """TAFE eq. (1)-(3): P(T_i = 1) is that of all steps up to i, and falls along the funnel by the share that exits.

    The last is the constraint of TAFE eq. (4), printed there with the other sign.
    """
    P = joint(counts)  # noqa: N806
    for i in range(len(counts) - 1):
        marginal = probability(P, *[None] * i, 1)
        assert marginal == probability(P, *[1] * (i + 1))
        if i:
            before = probability(P, *[None] * (i - 1), 1)
            assert before >= marginal
            assert before - marginal == probability(P, *[1] * i, 0)


@few_examples
@given(depths)
def test_a_marginal_is_the_product_of_conditionals(counts: list[int]) -> None:
    """TAFE eq. (5)-(7): as `MarginalFromConditional` computes it, and its sums over the step before."""
    P = joint(counts)  # noqa: N806
    click, purchase = probability(P, 1), probability(P, None, 1)
    conditional = probability(P, 1, 1) / click
    assert purchase == click * conditional == probability(P, 0, 1) + probability(P, 1, 1)
    assert probability(P, None, 0) == probability(P, 0, 0) + probability(P, 1, 0)
    logits = torch.tensor([[float(click), float(conditional)]], dtype=torch.float64).logit()
    marginal = MarginalFromConditional(TaskChain(["click", "purchase"]))(logits).sigmoid()
    torch.testing.assert_close(marginal, torch.tensor([[float(click), float(purchase)]], dtype=torch.float64))


@pytest.mark.parametrize("paper", EQUATIONS)
def test_every_equation_of_the_papers_has_a_place_that_names_its_number(paper: str) -> None:
    named: set[int] = set()
    for folder in ("torchrec_mtl", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            for cited, first, last in CITED.findall(file.read_text("utf-8")):
                if cited == paper:
                    named |= set(range(int(first), int(last or first) + 1))
    assert set(EQUATIONS[paper]) - named == set()
