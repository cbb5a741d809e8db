"""Every public callable, every kind of wrong argument: it does what it says, or refuses in one sentence.

``TORCHREC_MTL_DRAWS`` is the number of draws for each cell.
"""

import os

import pytest

from tests.fuzz.cases import CASES, CONTAINERS
from tests.fuzz.cell import draw, kinds_of
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
