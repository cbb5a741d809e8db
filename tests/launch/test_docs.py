"""docs/cluster.md: its commands are ones that the programs take."""

import re
import shlex
from pathlib import Path

import pytest
from torch.distributed.run import parse_args
from torchx.cli.argparse_util import ArgOnceAction, torchxconfig
from torchx.cli.main import main as torchx

from torchrec_mtl.jobs.train_arguments import configure, parser

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8").replace("\\\n", " ")
COMMANDS = [shlex.split(line) for line in re.findall(r"^(?:\| .* \| `)?((?:torchx run|torchrun) -[^`\n]*)", TEXT, re.M)]


def test_there_are_commands_for_one_machine_two_and_two_schedulers():
    assert [command[0] for command in COMMANDS] == ["torchrun", "torchx", "torchrun", "torchx", "torchx"]


@pytest.mark.parametrize("command", [command for command in COMMANDS if command[0] == "torchrun"])
def test_torchrun_takes_it_and_so_does_the_program(command):
    options = parse_args(command[1:])
    assert (options.module, options.training_script) == (True, "torchrec_mtl")
    job, *arguments = options.training_script_args
    args = parser().parse(arguments)
    assert job == "train"
    assert [config.name for config in configure(args)] == ["tafe"]
    assert args.name == "first"


@pytest.mark.parametrize("command", [command for command in COMMANDS if command[0] == "torchx"])
def test_torchx_would_launch_it(command, capsys, monkeypatch):
    for action in (ArgOnceAction, torchxconfig):  # which keep what the command before has set
        monkeypatch.setattr(action, "called_args", set(), raising=False)
    if "kubernetes" in command:
        pytest.importorskip("kubernetes")
    torchx(["run", "--dryrun", *command[2:]])
    launched = re.sub(r"[\"']\n\s+[\"']", "", capsys.readouterr().out)  # a long line is printed in pieces
    assert "-m torchrec_mtl train" in launched
    assert "--name first" in launched
