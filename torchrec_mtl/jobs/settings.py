"""What the jobs can train, and with which sizes: a run is a function that returns a `RunConfig`.

`complete_journey` has the sizes chosen for that data on its validation split; `paper` those of the papers.
"""

import ast
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs.registry import MODELS
from torchrec_mtl.training.config import OptimizerConfig, TableConfig, TrainingConfig


@dataclass(frozen=True)
class RunConfig:
    """One model's run.

    Args:
        model: a key of `MODELS`.
        embedding_dim: ``D`` of every table.
        table_init: standard deviation of the tables' initial values, drawn from a normal distribution.
        model_args: the model's own arguments.
        loss_args: its loss's.
        training: see `TrainingConfig`.

    Raises:
        InputError: if the model or one of its arguments is unknown.
    """

    model: str
    embedding_dim: int
    table_init: float = 0.01
    model_args: Mapping[str, Any] = field(default_factory=dict)
    loss_args: Mapping[str, Any] = field(default_factory=dict)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        if self.model not in MODELS:
            raise InputError(f"`model` (={self.model!r}) must be one of {list(MODELS)}")
        if self.embedding_dim < 1:
            raise InputError(f"`embedding_dim` (={self.embedding_dim}) must be at least 1")
        entry = MODELS[self.model]
        for name, given, taker in [
            ("model_args", self.model_args, entry.arch),
            ("loss_args", self.loss_args, entry.loss),
        ]:
            known = list(inspect.signature(taker).parameters)
            for argument in given:
                if argument not in known:
                    raise InputError(f"`{name}` of {self.model}: {argument!r} must be one of {known}")


def complete_journey(model: str) -> RunConfig:
    """Sizes for the Complete Journey funnel, chosen on its validation split; one epoch for every model."""
    base = MODELS[model].ablation_of or model
    small_experts = {"expert_layer_sizes": (64, 32), "tower_layer_sizes": ()}
    model_args: dict[str, dict[str, Any]] = {
        "single_task": {"layer_sizes": (64, 32), "dropout": 0.3},
        "shared_bottom": {"bottom_layer_sizes": (64, 32), "tower_layer_sizes": ()},
        "cross_stitch": {"layer_sizes": (64, 32), "tower_layer_sizes": ()},
        "omoe": small_experts,
        "mmoe": small_experts,
        "mmoe_dselect_k": small_experts,
        "ple": small_experts,
        "esmm": {"tower_layer_sizes": (64, 32), "dropout": 0.3},
        "escm2_ips": {"tower_layer_sizes": (64, 32), "dropout": 0.3},
        "escm2_dr": {"tower_layer_sizes": (64, 32), "dropout": 0.3},
        "aitm": {"tower_layer_sizes": (64, 32)},
        # over the embedding axis, eq. (4)'s layers never see two fields together, and the AUC is lower by .005
        "bpcm": {
            "aggregation_over": "fields",
            "aggregation_size": 64,
            "tower_layer_sizes": (64,),
            "dropout": 0.1,
        },
        "tafe": {
            "num_layers": 2,
            "num_inducing_points": 8,
            "tower_layer_sizes": (32,),
            "schedule": (10.0, 1e-2, 1e-3),  # the paper's rate counts on a million steps, this run has 840
        },
    }
    return RunConfig(
        model,
        embedding_dim=32 if base == "tafe" else 8,  # the width of all that TAFE's towers see
        table_init=0.1 if base == "bpcm" else 0.01,  # its attention is uniform while the fields are all near 0
        model_args=model_args[base],
        # what models share is else drawn to the first step, 30 times as frequent as the last
        loss_args={"task_weights": (1.0, 2.0, 4.0, 8.0)},
        training=TrainingConfig(
            batch_size=1024,
            evaluations_per_epoch=2,
            optimizer=OptimizerConfig(learning_rate=2e-3),
            table=TableConfig("adam", learning_rate=2e-3),
        ),
    )


def paper(model: str) -> RunConfig:
    """The papers' sizes: TAFE table 1 and section 4.1; for BPCM, the best of its section 4.5.

    The models' defaults are the papers'; the tables' optimizer is Adam as all their parameters'.
    """
    base = MODELS[model].ablation_of or model
    table = TableConfig("adam", learning_rate=1e-3)
    training = TrainingConfig(batch_size=1024, max_epochs=1, evaluations_per_epoch=4, table=table)
    return RunConfig(model, embedding_dim=5 if base == "bpcm" else 18, training=training)


SETTINGS = {"complete_journey": complete_journey, "paper": paper}


def apply_overrides(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Replaces fields by ``path=value``, such as ``training.max_epochs=3`` or ``model_args.num_layers=4``.

    A path that begins with a model's name (``tafe.model_args.num_layers=4``) holds for that model and its ablations.

    Raises:
        InputError: if a path leads nowhere or a value is of another type than the field's.

    Example::

        >>> config = apply_overrides(paper("tafe"), ["training.max_epochs=3", "tafe.model_args.num_layers=2"])
        >>> config.training.max_epochs, config.model_args
        (3, {'num_layers': 2})
    """
    for override in overrides:
        path, equals, text = override.partition("=")
        keys = path.split(".")
        if not equals or not all(keys):
            raise InputError(f"override {override!r} must have the form path=value")
        if keys[0] in MODELS and keys.pop(0) not in (config.model, MODELS[config.model].ablation_of):
            continue
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text  # a bare word is a string
        config = _replaced(config, keys, value, path)
    return config


def _replaced(config: Any, keys: list[str], value: Any, path: str) -> Any:
    """``config`` with the field at ``keys`` replaced."""
    key, *rest = keys or [""]
    if isinstance(config, Mapping):
        return {**config, key: _replaced(config.get(key, {}), rest, value, path) if rest else value}
    known = [f.name for f in fields(config)] if is_dataclass(config) else []
    if key not in known:
        raise InputError(f"override {path!r}: {key!r} must be one of {known}")
    old = getattr(config, key)
    if rest:
        value = _replaced(old, rest, value, path)
    elif isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    elif type(value) is not type(old):
        raise InputError(f"override {path!r} (={value!r}) must be of type {type(old).__name__}")
    return replace(config, **{key: value})


def first_difference(made: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """The first setting that differs between what a run was made with and what is asked for, told; or None.

    Example::

        >>> first_difference({"training": {"seed": 0}}, {"training": {"seed": 1}})
        'training.seed=0, now 1 is asked for'
    """
    flat = [_flat(json.loads(json.dumps(config))) for config in (made, wanted)]  # JSON makes lists of tuples
    for setting in sorted({*flat[0], *flat[1]}):
        was, now = (config.get(setting) for config in flat)
        if was != now:
            return f"{setting}={was!r}, now {now!r} is asked for"
    return None


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for name, value in config.items():
        settings |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return settings
