"""The settings of a run, and the functions that find its checkpoints."""

import dataclasses
from functools import cache

from tests.fuzz.cases.data import folder
from tests.fuzz.cases.drawn import integer, one_of
from tests.fuzz.cell import Case
from torchrec_mtl.training import checkpoint, config
from torchrec_mtl.training.checkpoint.manifest import publish


def _drawn(rng, kind):
    """Right values of every setting of ``kind``: the defaults, and for numbers others near them."""
    values = {}
    for field in dataclasses.fields(kind):
        value = getattr(kind(), field.name)
        if type(value) is int:
            value += integer(rng, 0, 3)
        elif field.name == "negative_rate":
            value = 1 - float(rng.random())
        elif type(value) is float:
            value += float(rng.random())
        values[field.name] = value
    return values


def _judge(given, made):
    for field in dataclasses.fields(made):
        value = getattr(made, field.name)
        if field.type == "int" or field.type is int:
            assert type(value) is int
            assert 0 <= value < 2**31
        if field.type == "float" or field.type is float:
            assert 0 <= value < float("inf")


def _config(kind):
    return Case(kind, lambda rng: _drawn(rng, kind), _judge)


@cache
def _saved():
    directory = folder() / "checkpoints"
    for step, score in ((3, 0.5), (7, 0.7)):
        partial = directory / f"step {step}.partial"
        partial.mkdir(parents=True)
        body = {"version": 1, "step": step, "score": score, "world_size": 1, "state": {}, "files": {}}
        publish(partial, checkpoint.checkpoint_of(directory, step), body)
    return directory


def _judge_step(step):
    def judge(given, result):
        found = result[-1] if isinstance(result, list) else result
        assert (found["step"] if isinstance(found, dict) else int(found.name[-9:])) == step

    return judge


def _judge_name(given, path):
    assert path.name == f"step_{given['step']:09d}"
    assert given["step"] >= 0


CONFIGS = {
    f"{name}": _config(getattr(config, name))
    for name in ("CheckpointConfig", "OptimizerConfig", "TableConfig", "TrainingConfig", "ZchConfig")
}
CHECKPOINTS = {
    "best_checkpoint": Case(checkpoint.best_checkpoint, lambda rng: {"directory": _saved()}, _judge_step(7)),
    "checkpoints": Case(
        checkpoint.checkpoints,
        lambda rng: {"directory": _saved()},
        lambda given, result: _judge_step(7)(given, result) if given["directory"] == _saved() else None,
    ),
    "checkpoint_of": Case(
        checkpoint.checkpoint_of, lambda rng: {"directory": _saved(), "step": one_of(rng, 3, 7)}, _judge_name
    ),
    "read_manifest": Case(
        checkpoint.read_manifest, lambda rng: {"checkpoint": _saved() / "step_000000003"}, _judge_step(3)
    ),
    "verify": Case(checkpoint.verify, lambda rng: {"checkpoint": _saved() / "step_000000007"}, _judge_step(7)),
}
