"""The loss for late labels is accepted before its data are there."""

import pytest

from torchrec_mtl.jobs.known_tasks import check_buildable
from torchrec_mtl.jobs.settings import PAPER, make_config
from torchrec_mtl.systems import SYSTEMS


@pytest.mark.parametrize("weights", [[], *(["loss_args.task_weights=" + ",".join(["1"] * n)] for n in (4, 5, 6))])
def test_it_can_be_built_for_data_that_are_not_there_yet(weights):
    check_buildable(make_config(SYSTEMS["aitm"], PAPER, ["loss=delayed", *weights]), "/not/here/yet", None)
