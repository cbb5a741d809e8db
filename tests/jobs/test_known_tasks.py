"""What is known of a run before its data are there."""

import pytest
import torch

from torchrec_mtl.data import Field, Schema
from torchrec_mtl.datasets.complete_journey.prepare import FIELDS, TASKS
from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs.build import build_model
from torchrec_mtl.jobs.datasets import DATASETS
from torchrec_mtl.jobs.known_tasks import check_buildable
from torchrec_mtl.jobs.settings import PAPER, make_config
from torchrec_mtl.systems import SYSTEMS

DATA = DATASETS["complete_journey"]


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_suits_the_default_data_before_and_after_they_are_prepared(name):
    config = make_config(SYSTEMS[name], DATA.settings)
    check_buildable(config, "complete_journey", DATA)
    build_model(config, Schema("journey", [Field(field, 3) for field in FIELDS], TASKS), torch.device("meta"))


def test_fields_that_an_argument_names_may_be_of_unseen_data():
    named = ["model_args.domain_fields=[page, shop]", "model_args.prior_fields=[page, user]"]
    check_buildable(make_config(SYSTEMS["pepnet"], PAPER, named), "/not/here/yet", None)
    with pytest.raises(InputError, match=r"`domain_fields` \(=\[2, 2\]\) must be different positions"):
        check_buildable(
            make_config(SYSTEMS["pepnet"], PAPER, ["model_args.domain_fields=[page, page]"]), "/not/here/yet", None
        )


@pytest.mark.parametrize("wrong", ["3", "page", "[3]"])
def test_fields_of_another_type_raise(wrong):
    with pytest.raises(InputError, match="domain_fields"):
        check_buildable(
            make_config(SYSTEMS["pepnet"], PAPER, [f"model_args.domain_fields={wrong}"]), "/not/here/yet", None
        )
