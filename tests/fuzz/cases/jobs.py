"""The command lines and TorchX components, up to where work would begin: a plan, or one sentence and status 2."""

import contextlib
import inspect
import io

from torchx.specs.builders import materialize_appdef

from tests.fuzz.cases.data import folder
from tests.fuzz.cases.datasets import _raw, _synthetic
from tests.fuzz.cases.drawn import integer, one_of
from tests.fuzz.cell import Case
from torchrec_mtl import components
from torchrec_mtl.__main__ import main
from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs import calibrate, evaluate, export, predict, prepare
from torchrec_mtl.jobs.compare import job as compare
from torchrec_mtl.jobs.train_arguments import check_arguments


def _options(given):
    """The command line: a setting for each name with a dot, an option for each other."""
    settings = [f"{name}={value}" for name, value in given.items() if "." in name]
    return [
        *(word for name, value in given.items() if "." not in name for word in (f"--{name}", str(value))),
        *settings,
    ]


def _printed(run):
    """What ``run`` returns or exits with, and what it printed."""
    with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
        try:
            status = run()
        except SystemExit as exit:
            status = exit.code
    return status, errors.getvalue()


def _equal(found, expected):
    assert found == expected


def _command_line(check, name, *before, shows=()):
    """The job's check of its arguments; what it refuses, the program refuses in the same words, with status 2."""

    def call(**given):
        argv = [*before, *_options(given)]
        try:
            return check(argv)
        except InputError as error:
            ended = _printed(lambda: main([name, *argv, *shows]))
            if ended[0] != 0 or not shows:  # what is shown needs no model
                _equal(ended, (2, f"error: {error}\n"))
            raise

    return call


def _train(rng):
    return {
        "models": one_of(rng, "tafe", "single_task,bpcm", "escm2_dr"),
        "dataset": str(_synthetic()),
        "sample": float(rng.random() * 0.9 + 0.1),
        "settings": "paper",
        "metrics": one_of(rng, "auc", "auc,log_loss"),
        "seed": integer(rng, 0, 9),
        "name": "first",
        "output": str(folder() / "runs"),
        "training.batch_size": 64,
        "training.precision": one_of(rng, "fp32", "bf16"),
        "training.table.learning_rate": 0.1,
        "training.max_epochs": integer(rng, 1, 3),
        "training.patience": 2,
        "model_args.dropout": 0.25,
    }


def _compare(rng):
    return {
        "protocol": one_of(rng, "complete_journey", "paper"),
        "datasets": str(_synthetic()),
        "sample": 0.5,
        "models": one_of(rng, "tafe", "bpcm,tafe"),
        "seeds": integer(rng, 1, 3),
        "workers": integer(rng, 1, 2),
        "stages": one_of(rng, "search,final", "report"),
        "metrics": one_of(rng, "auc", "auc,log_loss"),
        "output": str(folder() / "compared"),
        "training.batch_size": 64,
        "training.optimizer.weight_decay": 0.5,
    }


def _prepare(rng):
    return {
        "raw": str(_raw("taobao")),
        "output": str(folder() / "taobao"),
        "history-length": integer(rng, 0, 3),
        "min-count": integer(rng, 1, 3),
        "bad-rows": one_of(rng, "strict", "quarantine"),
        "bad-rows-limit": 5,
        "sample": 0.5,
        "seed": integer(rng, 0, 9),
    }


def _judge_train(given, configs):
    assert len(configs) == len(given["models"].split(","))
    for config in configs:
        assert config.training.seed == int(given["seed"])
        assert config.training.batch_size == int(given["training.batch_size"])


def _judge_compare(given, systems):
    assert [system.name for system in systems] == given["models"].split(",")


def _judge_prepare(given, args):
    assert args.options["min_count"] == int(given["min-count"])
    assert 0 < args.options["sample"] <= 1


def _of_run(rng):
    return {"model": "shared_bottom", "batch-size": integer(rng, 1, 64)}


def _evaluate(rng):
    data = {"dataset": str(_synthetic()), "sample": 0.5, "split": one_of(rng, "train", "valid", "test")}
    return {**_of_run(rng), **data, "metrics": one_of(rng, "auc", "auc,log_loss")}


def _predict(rng):
    rows = {"input": str(_synthetic() / "test.parquet"), "output": str(folder() / "scores.parquet")}
    return {**_of_run(rng), **rows, "values": one_of(rng, "step_1=1", "step_1=1,step_2=2.5")}


def _calibrate(rng):
    return {**_of_run(rng), "dataset": str(_synthetic()), "sample": 0.5, "method": one_of(rng, "isotonic", "platt")}


def _export(rng):
    data = {"dataset": str(_synthetic()), "sample": 0.5, "output": str(folder() / "package")}
    return {**_of_run(rng), **data, "table-type": one_of(rng, "fp32", "fp16", "int8", "int4"), "march": "x86-64-v3"}


def _judge_of_run(given, args):
    assert args.batch_size == int(given["batch-size"]) >= 1


def _component(name):
    """Materialised as ``torchx run`` does, from text."""
    component = getattr(components, name)
    required = {
        "prepare": {"dataset": "taobao", "raw": "raw", "output": "data"},
        "bench": {"program": "peers"},
        "evaluate": {"run": "runs/first"},
        "predict": {"run": "runs/first", "input": "rows", "output": "scores.parquet"},
        "calibrate": {"run": "runs/first"},
        "export": {"run": "runs/first", "output": "package"},
    }

    def call(**given):
        words = [word for option, value in given.items() for word in (f"--{option}", str(value))]
        made = []
        status, printed = _printed(lambda: made.append(materialize_appdef(component, words)))
        if status is not None:
            assert status == 2, status
            sentence = printed.strip().splitlines()[-1]
            assert "Traceback" not in printed
            assert "error: " in sentence, printed
            raise InputError(sentence)
        return made[0]

    names = {n: p.default for n, p in inspect.signature(component).parameters.items() if p.kind is p.KEYWORD_ONLY}

    def draw(rng):
        given = {n: required.get(name, {}).get(n, default) for n, default in names.items()}
        given |= {n: str(_synthetic()) for n in ("dataset",) if n in given and name != "prepare"}
        given |= {"models": "tafe"} if "models" in given else {}
        given |= {"sample": 0.5} if "sample" in given else {}
        return given | ({"cpu": integer(rng, 1, 4)} if "cpu" in given else {})

    def judge(given, app):
        role = app.roles[0]
        assert role.resource.cpu >= 1
        assert role.resource.memMB >= 1
        assert role.max_retries >= 0

    return Case(call, draw, judge, typed=False)


CASES = {
    "train": Case(_command_line(check_arguments, "train", shows=["--show-config"]), _train, _judge_train, typed=False),
    "compare": Case(
        _command_line(lambda argv: compare.check(compare.parser().parse(argv)), "compare"),
        _compare,
        _judge_compare,
        typed=False,
    ),
    "prepare": Case(_command_line(prepare.parse, "prepare", "taobao"), _prepare, _judge_prepare, typed=False),
    "evaluate": Case(_command_line(evaluate.parse, "evaluate", "runs/first"), _evaluate, _judge_of_run, typed=False),
    "predict": Case(_command_line(predict.parse, "predict", "runs/first"), _predict, _judge_of_run, typed=False),
    "calibrate": Case(
        _command_line(calibrate.parse, "calibrate", "runs/first"), _calibrate, _judge_of_run, typed=False
    ),
    "export": Case(_command_line(export.parse, "export", "runs/first"), _export, _judge_of_run, typed=False),
}
COMPONENTS = {
    name: _component(name)
    for name in ("train", "compare", "prepare", "evaluate", "predict", "calibrate", "export", "bench")
}
