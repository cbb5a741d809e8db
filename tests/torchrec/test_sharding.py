"""TorchRec's sharding test on every model: a step on two ranks, sharded, then predicts what a whole process does."""

import pytest

from tests import processes
from tests.torchrec.sparse_nn import CONTROL, NAMES, check_sharded_step, model_class

TYPES = ["table_wise", "row_wise", "column_wise"]
FURTHER_TYPES = ["table_row_wise", "table_column_wise", "data_parallel"]


def _check(cases: list[tuple[str, str]]) -> None:
    for name, sharding_type in cases:
        try:
            check_sharded_step(model_class(name), sharding_type)
        except Exception as error:
            raise AssertionError(f"in {name}, {sharding_type}") from error


@pytest.mark.slow
def test_a_sharded_step_is_the_whole_step():
    cases = [(name, each) for name in NAMES for each in TYPES]
    cases += [(name, each) for name in (CONTROL, "tafe") for each in FURTHER_TYPES]
    processes.run(_check, 2, cases)
