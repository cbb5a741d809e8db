"""What `torchx run` would launch."""

import sys

import pytest
from torchx.components.component_test_base import ComponentTestCase
from torchx.runner import get_runner

from torchrec_mtl import components


class TestComponents(ComponentTestCase):
    def test_train_is_a_valid_component(self):
        self.validate(components, "train")


def dryrun(*arguments):
    with get_runner() as runner:
        return runner.dryrun_component("mtl.train", list(arguments), "local_cwd").request


def test_one_process_is_the_program_itself():
    (replica,) = dryrun("-j", "1x1", "--models", "tafe", "tafe.model_args.num_layers=2").role_params["train"]
    assert replica.args[:3] == [sys.executable, "-m", "torchrec_mtl.jobs.train"]
    assert replica.args[-1] == "tafe.model_args.num_layers=2"
    assert replica.args[replica.args.index("--models") + 1] == "tafe"
    assert replica.args[replica.args.index("--sample") + 1] == "0.2"
    assert replica.env["OMP_NUM_THREADS"] == "2"


def test_several_processes_are_torchruns():
    (role,) = dryrun("-j", "1x2", "--cpu", "4").role_params.values()
    command = " ".join(role[0].args)
    assert "torchrun" in command
    assert "--nproc_per_node 2" in command
    assert "-m torchrec_mtl.jobs.train" in command
    assert role[0].env["OMP_NUM_THREADS"] == "2"


def test_a_wrong_argument_is_told_before_anything_is_launched(capsys):
    with pytest.raises(SystemExit) as exit_status:
        components.train(models="esmmm")
    assert exit_status.value.code == 2
    assert capsys.readouterr().err.startswith("error: model 'esmmm' must be one of")


def test_torchxs_own_components_stay():
    with get_runner() as runner:
        assert runner.dryrun_component("utils.echo", ["--msg", "hello"], "local_cwd")
