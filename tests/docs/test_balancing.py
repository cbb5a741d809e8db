"""docs/balancing.md: its table is the code's, and its commands and program are accepted."""

import inspect
import re
import shlex
from pathlib import Path

from tests.support import TASKS, batch, build
from torchrec_mtl import losses
from torchrec_mtl.jobs.compare.job import check, parser
from torchrec_mtl.jobs.parameters import parameters
from torchrec_mtl.jobs.settings import Settings, make_config
from torchrec_mtl.systems import SYSTEMS
from torchrec_mtl.training.balancing import BALANCINGS
from torchrec_mtl.training.balancing.method import GRADIENTS
from torchrec_mtl.training.config import TrainingConfig

PAGE = (Path(__file__).parents[2] / "docs" / "balancing.md").read_text(encoding="utf-8")
ROW = re.compile(
    r"^\| `(\w+)` \| (.*) \| (nothing|losses|representation|shared) \| (all|shared) parameters' gradients \|$", re.M
)


def test_the_table_is_that_of_the_methods():
    told = {name: (reads, weighted) for name, _, reads, weighted in ROW.findall(PAGE)}
    found = {}
    for name, kind in BALANCINGS.items():
        method = kind(TASKS, **({"weights": [1.0] * 3} if name == "static" else {}))
        weighs_all = method.reads not in GRADIENTS or method.weighs_specific
        found[name] = (method.reads, "all" if weighs_all else "shared")
    assert told == found


def test_papers_are_those_of_the_docstrings():
    for name, paper, _, _ in ROW.findall(PAGE):
        if name != "static":
            author, year = re.match(r"\w+", paper)[0], paper[-4:]
            module = __import__(BALANCINGS[name].__module__, fromlist=["__doc__"])
            assert author in module.__doc__, name
            assert year in module.__doc__, name


def test_methods_with_a_choice_of_gradients_are_the_ones_named():
    taking = {name for name, kind in BALANCINGS.items() if "gradients" in inspect.signature(kind).parameters}
    assert taking == {"pcgrad", "mgda", "cagrad", "aligned_mtl"}


def test_commands_are_accepted():
    (commands,) = re.findall(r"```bash\n(.*?)```", PAGE, re.S)
    for command in commands.splitlines():
        program, job, *arguments = shlex.split(command, comments=True)
        assert program == "torchrec-mtl"
        if job == "compare":
            assert check(parser().parse(arguments))
        else:
            overrides = [argument for argument in arguments if "=" in argument]
            assert make_config(SYSTEMS["mmoe"], Settings(), overrides).training.balancing == "cagrad"


def test_the_programs_run_as_they_stand():
    first, own = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    names = {"model": build("mmoe"), "loss": losses.CrossEntropyLoss(TASKS), "tasks": TASKS}
    exec(first, names)
    assert names["train_model"].balancer.method.c == 0.2
    exec(own, names)
    names["train_model"](batch(12))[0].backward()
    assert all(p.grad is not None for p in names["model"].parameters())


def test_the_help_names_every_method():
    described = parameters(TrainingConfig, "", {})["balancing"].description
    assert re.findall(r'"(\w+)"', described) == ["sum", *BALANCINGS]
