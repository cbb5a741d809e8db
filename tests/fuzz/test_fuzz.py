"""Every public callable, every kind of wrong argument: it does what it says, or refuses in one sentence.

``TORCHREC_MTL_DRAWS`` is the number of draws for each cell.
"""

import os

import pytest

from tests.fuzz import coverage
from tests.fuzz.cases import CASES, CONTAINERS
from tests.fuzz.cell import DRAWN, draw, kinds_of
from tests.fuzz.public import public_callables

DRAWS = int(os.environ.get("TORCHREC_MTL_DRAWS", "2"))


def test_every_public_callable_has_a_case():
    assert public_callables().keys() - CASES.keys() == CONTAINERS.keys()


@pytest.mark.parametrize("name", CASES)
def test_does_what_it_says_or_refuses_in_one_sentence(name):
    case = CASES[name]
    for kind in kinds_of(case):
        for seed in range(DRAWS):
            draw(name, case, kind, seed)


def test_the_coverage_table_has_every_cell():
    cells = [(name, kind) for name, case in CASES.items() for kind in kinds_of(case)]
    rows = coverage.recorded()
    assert sorted((row["callable"], row["kind"]) for row in rows) == sorted(cells)
    for row in rows:
        assert int(row["drawn"]) == int(row["worked"]) + int(row["refused"]) == coverage.DRAWS, row
        if row["kind"] == DRAWN and not CASES[row["callable"]].refused:
            assert row["refused"] == "0", row
