"""`training.balancing` of a run: its settings, its model, and a run from the command line."""

import json

import pytest
import torch

from tests.jobs import funnel
from torchrec_mtl.__main__ import main
from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs.build import build_model
from torchrec_mtl.jobs.loading import load_run, read_config
from torchrec_mtl.jobs.settings import Settings, describe, make_config
from torchrec_mtl.systems import SYSTEMS
from torchrec_mtl.training.balancing import BALANCINGS

MMOE = SYSTEMS["mmoe"]
SMALL = [
    "mmoe.model_args.num_experts=2",
    "mmoe.model_args.expert_layer_sizes=[8]",
    "mmoe.model_args.tower_layer_sizes=[4]",
]


def test_a_setting_is_read_back_as_it_was_written():
    config = make_config(MMOE, Settings(), ["training.balancing=dwa", "training.balancing_args.temperature=3"])
    assert config.training.balancing_args == {"temperature": 3.0}
    assert read_config(json.loads(json.dumps(config.as_dict()))).training == config.training
    assert "training.balancing_args.temperature=3.0 (float): tau; the larger" in " ".join(describe([config]).split())


def test_settings_of_another_balancing_are_left_out():
    """As those of another loss are: a data set may have found them for one."""
    found = Settings({"training.balancing": "cagrad", "training.balancing_args.c": 0.2})
    assert make_config(MMOE, found).training.balancing_args == {"c": 0.2}
    assert make_config(MMOE, found, ["training.balancing=pcgrad"]).training.balancing_args == {}


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["training.balancing=pcgard"], "`balancing` .*must be one of"),
        (["training.balancing=static"], "`training.balancing_args.weights` of mmoe must be given"),
        (["training.balancing=cagrad", "training.balancing_args.c=much"], "must be of type float"),
        (["training.balancing=cagrad", "training.balancing_args.rescle=none"], "nearest is .*rescale"),
        (["training.balancing_args.c=0.2"], "mmoe has no setting"),
    ],
)
def test_a_wrong_setting_is_one_sentence(overrides, sentence):
    with pytest.raises(InputError, match=sentence):
        make_config(MMOE, Settings(), overrides)


def test_a_model_of_a_run_has_its_balancing():
    config = make_config(MMOE, Settings(), ["training.balancing=uncertainty", *SMALL])
    method = build_model(config, funnel.SCHEMA, torch.device("meta")).balancer.method
    assert isinstance(method, BALANCINGS["uncertainty"])
    static = ["training.balancing=static", "training.balancing_args.weights=[1, 2, 3, 4, 5]"]
    config = make_config(MMOE, Settings(), [*static, *SMALL])
    with pytest.raises(InputError, match="must be one a task"):
        build_model(config, funnel.SCHEMA, torch.device("meta"))


@pytest.mark.slow
def test_a_run_trains_and_is_read_again(tmp_path):
    data = funnel.prepare(tmp_path / "data", train=300, valid=100, test=100)
    options = ["--dataset", str(data), "--output", str(tmp_path), "--name", "run", "--models", "mmoe"]
    assert main(["train", *options, "training.batch_size=50", "training.balancing=mgda", *SMALL]) == 0
    loaded = load_run(tmp_path / "run")
    assert loaded.config.training.balancing == "mgda"
    assert set(loaded.train_model.balancer.shared.tolist()) == {0, 1}  # as it was found in training
