"""Makes a run from settings ``path=value``, checked against the constructors that accept them."""

import inspect
import json
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

from torch import nn

from torchrec_mtl.errors import InputError, nearest, not_one_of
from torchrec_mtl.jobs.command_line import named
from torchrec_mtl.jobs.parameters import Parameter, parameters
from torchrec_mtl.jobs.run_config import RunConfig, loss_name, plain
from torchrec_mtl.modules import HistoryConfig
from torchrec_mtl.systems import LOSSES, SYSTEMS, System
from torchrec_mtl.training.balancing import BALANCINGS
from torchrec_mtl.training.config import TableConfig, TrainingConfig, ZchConfig


@dataclass(frozen=True)
class Settings:
    """Values found or published for a data set; the command line overrides them.

    Args:
        common: values for every system, by path.
        systems: values for a system and its ablations, by the system's name and by path. A system without entry has the
            ``common`` values and the defaults of its constructors.
    """

    common: Mapping[str, Any] = field(default_factory=dict)
    systems: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def of(self, system: System) -> dict[str, Any]:
        """The values for ``system``."""
        return {**self.common, **self.systems.get(system.base, {})}


# The papers' sizes are the models' defaults: TAFE table 1 and section 4.1; for BPCM, the best of its section 4.5.
PAPER = Settings(
    common={
        "training.evaluations_per_epoch": 4,
        "training.table.optimizer": "adam",  # which the papers use for all parameters
        "training.table.learning_rate": 1e-3,
    },
    systems={"bpcm": {"embedding_dim": 5}},
)


def run_parameters(
    system: System, loss: Callable[..., nn.Module], balancing: str = TrainingConfig.balancing
) -> dict[str, Parameter]:
    """Every setting of a run of ``system`` with ``loss`` and the ``balancing`` called so, by path."""
    described = parameters(RunConfig, "", {}, skip=["system", "loss", *_ROOTS])
    own_loss = system.loss_args if loss is system.loss else {}
    description = f"class of the loss, one of {', '.join(LOSSES)}, or package.module:CLASS"
    described["loss"] = Parameter("loss", str, loss_name(loss), description)
    skip = ["features", "tasks", *system.fixed]
    described |= parameters(system.model, "model_args.", system.model_args, skip)
    described |= parameters(loss, "loss_args.", own_loss, ["tasks", *(system.fixed if own_loss else ())])
    described |= parameters(ZchConfig, "zch.", vars(ZchConfig()))
    described |= parameters(HistoryConfig, "histories.", vars(HistoryConfig()))
    described |= parameters(TrainingConfig, "training.", vars(TrainingConfig()))
    if balancing in BALANCINGS:
        described |= parameters(BALANCINGS[balancing], "training.balancing_args.", {}, ["tasks"])
    return described


def make_config(
    system: System, settings: Settings, overrides: Sequence[str] = (), others: Sequence[str] = ()
) -> RunConfig:
    """Makes the run of ``system`` with ``settings``, some of which ``overrides`` (``path=value``) replace.

    A path that begins with the name of a system (``tafe.model_args.num_layers=4``) applies to that system and its
    ablations. A loss and a balancing get only those arguments of ``settings`` that they accept.

    Args:
        system: system to train.
        settings: values that hold unless they are overridden.
        overrides: settings that replace them.
        others: names of systems from elsewhere, with which overrides may begin.

    Raises:
        InputError: if a path does not exist, a setting would turn the system into another, a value is of another type
            or out of its range, or a value without default is missing.

    Example::

        >>> overrides = ["training.max_epochs=3", "tafe.model_args.num_layers=2", "bpcm.embedding_dim=8"]
        >>> config = make_config(SYSTEMS["tafe"], PAPER, overrides)
        >>> config.training.max_epochs, config.model_args, config.embedding_dim
        (3, {'num_layers': 2}, 18)
    """
    given = _own(system, overrides, {system.name, *SYSTEMS, *others})
    loss = _loss(system, given.pop("loss", None))
    of_settings = settings.of(system)
    balancing = given.get("training.balancing", of_settings.get("training.balancing", TrainingConfig.balancing))
    known = run_parameters(system, loss, balancing)
    of_others = [path for path in of_settings if path.startswith(_OF_OTHERS) and path not in known]
    found = {path: value for path, value in of_settings.items() if path not in of_others}
    texts = {**{path: _written(value) for path, value in found.items()}, **given}
    tree: dict[str, Any] = {}
    for path, value in _values(texts, known, system):
        *folders, leaf = _keys(path)
        at = tree
        for folder in folders:
            at = at.setdefault(folder, {})
        at[leaf] = value
    for path, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and path not in texts:
            raise InputError(f"`{path}` of {system.name} must be given: it has no default")
    loss_args = dict(system.loss_args) if loss is system.loss else {}
    return _replaced(RunConfig(system, loss=loss, model_args=dict(system.model_args), loss_args=loss_args), tree)


def _own(system: System, overrides: Sequence[str], systems: set[str]) -> dict[str, str]:
    """The overrides that apply to ``system``: path -> text."""
    own: dict[str, str] = {}
    for override in overrides:
        path, equals, text = override.partition("=")
        first, dot, rest = path.partition(".")
        if not equals or not all(path.split(".")):
            raise InputError(f"setting {override!r} must have the form path=value")
        if dot and first in systems:
            if first not in (system.name, system.base):
                continue
            path = rest
        elif dot and first not in _ROOTS:
            raise InputError(not_one_of("the first part of a setting,", first, [*_ROOTS, *sorted(systems)]))
        own[path] = text
    return own


_OF_OTHERS = ("loss_args.", "training.balancing_args.")  # settings that another loss or balancing may not have
_OF_FIELDS = {  # settings of single fields
    "zch.num_rows_of.": (int, "rows of the table of this field"),
    "histories.candidates.": (str, "the field that attends this history"),
}
_ROOTS = ("model_args", "loss_args", "zch", "histories", "training")


def _values(texts: Mapping[str, str], known: Mapping[str, Parameter], system: System) -> Iterator[tuple[str, Any]]:
    """Yields the path and the checked value of each text; values of single tables come one by one."""
    for path, text in texts.items():
        value = _parameter(path, known, system).parse(text)
        if path != "training.tables":
            yield path, value
            continue
        for table, exceptions in value.items():
            of_table = {f"{path}.{table}.{key}": _written(each) for key, each in exceptions.items()}
            yield from _values(of_table, known, system)


def _loss(system: System, text: str | None) -> Callable[..., nn.Module]:
    if text is None:
        return system.loss
    loss = named("loss", text, LOSSES, type)
    is_module = isinstance(loss, type) and issubclass(loss, nn.Module)
    if not is_module or next(iter(inspect.signature(loss).parameters), None) != "tasks":
        raise InputError(f"loss {text!r} must be a torch.nn.Module whose first argument is `tasks`")
    of_loss = [name for name in system.fixed if name in system.loss_args]
    if of_loss and loss is not system.loss:
        raise InputError(f"`loss` of {system.name} must stay: {of_loss[0]} of it is what makes this system")
    return loss


def _keys(path: str) -> list[str]:
    """The parts of a path; the name of a table or a field may contain dots."""
    for prefix in _OF_FIELDS:
        if path.startswith(prefix):
            return [*prefix.split(".")[:-1], path.removeprefix(prefix)]
    if path.startswith("training.tables."):
        name, _, key = path.removeprefix("training.tables.").rpartition(".")
        return ["training", "tables", name, key]
    return path.split(".")


def _parameter(path: str, known: Mapping[str, Parameter], system: System) -> Parameter:
    if path in known:
        return known[path]
    *folders, leaf = _keys(path)
    for prefix, (kind, description) in _OF_FIELDS.items():
        if path.startswith(prefix) and leaf:
            return Parameter(path, kind, None, description)
    if folders[:2] == ["training", "tables"] and folders[2:] and folders[2]:
        of_table = parameters(TableConfig, ".".join(folders) + ".", {})
        if path in of_table:
            return of_table[path]
    if leaf in system.fixed and folders:
        raise InputError(f"`{path}` is what makes {system.name} this system, and cannot be set")
    near = nearest(path, known)
    hint = f"the nearest is {near!r}" if near else "`--help` lists them"
    raise InputError(f"{system.name} has no setting {path!r}; {hint}")


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _replaced(config: Any, tree: Mapping[str, Any]) -> Any:
    """A copy of ``config`` in which the leaves of ``tree`` replace its values."""
    if isinstance(config, Mapping):
        return {**config, **{key: _merged(config.get(key), value) for key, value in tree.items()}}
    return replace(config, **{key: _merged(getattr(config, key), value) for key, value in tree.items()})


def _merged(old: Any, new: Any) -> Any:
    return _replaced(old, new) if isinstance(new, Mapping) and (is_dataclass(old) or isinstance(old, Mapping)) else new


def describe(configs: Sequence[RunConfig]) -> str:
    """Lists every setting of the runs with value, type and description; settings that all runs share appear once."""
    each = {
        config.name: (run_parameters(config.system, config.loss, config.training.balancing), config.as_dict())
        for config in configs
    }
    parts: list[str] = []
    for name, (known, values) in each.items():
        shared = not parts
        lines = [
            textwrap.fill(
                f"{path}={json.dumps(_at(values, path, plain(parameter.default)))} ({parameter.kind}): "
                f"{parameter.description}",
                width=110,
                initial_indent="  ",
                subsequent_indent="      ",
            )
            for path, parameter in known.items()
            if shared or path.startswith(("model_args.", "loss_args."))
        ]
        parts.append("\n".join([f"settings of {name}{', the first lines and training.* of all' * shared}:", *lines]))
    return "\n\n".join(parts)


def _at(values: Mapping[str, Any], path: str, default: Any) -> Any:
    """The value at a path, a mapping whole."""
    found: Any = values
    for key in path.split("."):
        if not isinstance(found, Mapping) or key not in found:
            return default
        found = found[key]
    return found
