"""Losses of a run that need more of the data than labels."""

import inspect
import json
from dataclasses import replace

import pytest
import torch

from tests.jobs import funnel
from torchrec_mtl.__main__ import main
from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs.build import build_model
from torchrec_mtl.jobs.known_tasks import check_buildable
from torchrec_mtl.jobs.loading import load_run, read_config
from torchrec_mtl.jobs.run_config import RunConfig
from torchrec_mtl.jobs.settings import PAPER, make_config
from torchrec_mtl.losses import JRCLoss
from torchrec_mtl.systems import LOSSES, SYSTEMS

compares_rows = pytest.mark.parametrize("loss", ["pairwise", "jrc"])


@compares_rows
def test_a_loss_that_compares_rows_needs_a_group_column(loss):
    config = RunConfig(SYSTEMS["shared_bottom"], 4, loss=LOSSES[loss])
    build_model(config, funnel.SCHEMA, torch.device("meta"))
    rule = r"must be one that compares no rows, or the data must have a group column \(`group` of the schema\)"
    with pytest.raises(InputError, match=rf"`loss` \(=\w+Loss\) {rule}"):
        build_model(config, replace(funnel.SCHEMA, group=None), torch.device("meta"))


@compares_rows
def test_it_can_be_built_for_data_that_are_not_there_yet(loss):
    check_buildable(make_config(SYSTEMS["shared_bottom"], PAPER, [f"loss={loss}"]), "/not/here/yet", None)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_run_with_any_loss_is_read_back_with_it(loss):
    """Its class too, so that the model can be built."""
    weighs = "task_weights" in inspect.signature(LOSSES[loss]).parameters
    settings = [f"loss={loss}", *(["loss_args.task_weights=[1, 2, 3]"] if weighs else [])]
    config = make_config(SYSTEMS["single_task"], PAPER, settings)
    written = json.loads(json.dumps(config.as_dict()))
    read = read_config(written)
    assert read.loss is LOSSES[loss]
    assert json.loads(json.dumps(read.as_dict())) == written


@pytest.mark.slow
def test_a_run_leaves_out_negatives_of_data_that_are_laid_out(tmp_path, capsys):
    data = funnel.prepare(tmp_path / "data", train=300, valid=100, test=101)
    options = ["--dataset", str(data), "--output", str(tmp_path), "--models", "shared_bottom"]
    settings = ["training.batch_size=64", "training.negative_rate=0.25"]
    assert main(["train", *options, "--name", "run", *settings]) == 0
    assert load_run(tmp_path / "run").config.training.negative_rate == 0.25
    assert main(["train", *options, "--name", "streamed", "--reader", "stream", *settings]) == 2
    sentence = "`training.negative_rate` (=0.25) must be 1 for data that are read in place"
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("reader", ["mapped", "stream"])
def test_a_run_gives_its_loss_the_groups_of_the_data(reader, tmp_path):
    data = funnel.prepare(tmp_path / "data", train=300, valid=100, test=101)
    options = ["--dataset", str(data), "--output", str(tmp_path), "--name", "run", "--models", "shared_bottom"]
    settings = ["training.batch_size=64", "loss=jrc", "loss_args.alpha=0.7"]
    assert main(["train", *options, "--reader", reader, *settings]) == 0
    loss = load_run(tmp_path / "run").train_model.loss
    assert isinstance(loss, JRCLoss)
    assert loss.alpha == 0.7
