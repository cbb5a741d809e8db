"""No system's numbers move unless a change says so: what `cases.record` wrote holds to 1e-12."""

import numpy as np
import pytest

from tests.golden import cases
from tests.golden.names import old_name
from torchrec_mtl.jobs.registry import MODELS


@pytest.fixture(scope="module")
def golden():
    with np.load(cases.VALUES) as values:
        return dict(values)


@pytest.mark.parametrize("case", cases.DROPOUT)
@pytest.mark.parametrize("system", MODELS)
def test_logits_losses_and_weights_are_what_they_were(system, case, golden):
    prefix = f"{system}/{case}/"
    expected = {name.removeprefix(prefix): value for name, value in golden.items() if name.startswith(prefix)}
    actual = cases.run(system, case, old_name)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-12, atol=1e-12, err_msg=name)
