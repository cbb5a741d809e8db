"""Every argument of a model or a loss is in its signature, with a type, a default and a description."""

import inspect
import typing

import pytest
from docstring_parser import parse
from torch import nn

from torchrec_mtl import models
from torchrec_mtl.jobs.parameters import parameters
from torchrec_mtl.systems import LOSSES, SYSTEMS

MODELS = sorted({system.model for system in SYSTEMS.values()}, key=lambda model: model.__name__)
ARCHS = [getattr(models, name) for name in models.__all__ if name.endswith("Arch")]
every_model_and_loss = pytest.mark.parametrize("made", [*MODELS, *LOSSES.values()], ids=lambda made: made.__name__)
every_class = pytest.mark.parametrize("made", [*MODELS, *LOSSES.values(), *ARCHS], ids=lambda made: made.__name__)


def arguments_of(made, first):
    return list(inspect.signature(made).parameters.values())[first:]


@every_model_and_loss
def test_each_argument_has_a_type_a_default_and_a_description(made):
    positional = 2 if made in MODELS else 1  # features and tasks; tasks
    described = {p.arg_name: p.description for p in parse(made.__doc__).params}
    for parameter in arguments_of(made, positional):
        assert parameter.kind is parameter.KEYWORD_ONLY, parameter
        assert parameter.annotation is not parameter.empty, parameter
        assert parameter.default is not parameter.empty, parameter
        assert described[parameter.name].strip(), parameter
    assert set(described) == set(inspect.signature(made).parameters)


@every_class
def test_each_class_has_its_own_constructor_with_named_arguments(made):
    assert "__init__" in vars(made)
    kinds = {p.kind for p in inspect.signature(made).parameters.values()}
    assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}
    bases = [base for base in made.__mro__[1:] if base.__module__.startswith("torchrec_mtl")]
    assert all("__init__" not in vars(base) for base in bases)


@pytest.mark.parametrize("arch", ARCHS, ids=lambda arch: arch.__name__)
def test_a_model_has_the_arguments_of_its_over_arch_with_the_same_defaults(arch):
    model = getattr(models, arch.__name__.removesuffix("Arch"))
    of_model = {p.name: p.default for p in arguments_of(model, 2)}
    of_arch = {p.name: p.default for p in arguments_of(arch, 0) if p.kind is p.KEYWORD_ONLY}
    assert {name: of_model[name] for name in of_arch} == of_arch
    assert set(of_model) - set(of_arch) <= {"embedding_dim"}


@every_model_and_loss
def test_every_argument_with_a_plain_value_is_a_setting(made):
    known = parameters(made, "", {}, skip=["features", "tasks"])
    hints = typing.get_type_hints(made.__init__)
    for name in hints.keys() - {"features", "tasks", "return"}:
        assert name in known or name == "gate", name  # a gate is a class


def test_an_unknown_argument_raises():
    for model in MODELS:
        with pytest.raises(TypeError, match="nun_layers"):
            model(nn.Identity(), None, nun_layers="three")
