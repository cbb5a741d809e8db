"""Loads a trained run: model with its best weights, schema, encoder, calibration. Runs no code that a file names."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingCollection

from torchrec_mtl.argument_types import checked
from torchrec_mtl.data import Schema
from torchrec_mtl.data.schema import SCHEMA_FILE
from torchrec_mtl.data.stream_files import locate
from torchrec_mtl.data.table import TableEncoder
from torchrec_mtl.data.table.encoders import ENCODERS_FILE
from torchrec_mtl.errors import InputError, not_one_of
from torchrec_mtl.files import publish_folder, read_json
from torchrec_mtl.inference import Calibration, Predictor
from torchrec_mtl.inference.predictor import as_device
from torchrec_mtl.jobs.build import build_model
from torchrec_mtl.jobs.run_config import RunConfig, flat, loss_name
from torchrec_mtl.jobs.run_folder import CONFIG_FILE
from torchrec_mtl.jobs.settings import Settings, make_config
from torchrec_mtl.modules.row_assignment import RowAssignment
from torchrec_mtl.systems import LOSSES, SYSTEMS, System
from torchrec_mtl.training import MultiTaskTrain
from torchrec_mtl.training.checkpoint import best_checkpoint, load_weights
from torchrec_mtl.training.distributed import distribute

DATA_FOLDER = "data"  # of a run: schema and encoders of what it was trained on


@dataclass(frozen=True)
class LoadedRun:
    """A trained model and what belongs to it.

    Args:
        train_model: the model with its loss, sharded or not.
        schema: schema of the data that it was trained on.
        config: settings of the run.
        folder: folder of the model in the run.
        checkpoint: folder of its best weights.
        encoder: encoder of raw rows; None if the data came prepared.
        calibration: what ``torchrec-mtl calibrate`` fitted; None if it was not called.
        device: device of the model.
    """

    train_model: nn.Module
    schema: Schema
    config: RunConfig
    folder: Path
    checkpoint: Path
    encoder: TableEncoder | None
    calibration: Calibration | None
    device: torch.device

    @property
    def model(self) -> nn.Module:
        """``model(dense_features, sparse_features) -> logits [B, T]``."""
        inner: Any = getattr(self.train_model, "module", self.train_model)  # of DistributedModelParallel
        model: nn.Module = inner.model
        return model

    def predictor(self, batch_size: int = 4096) -> Predictor:
        """Returns a predictor with the model."""
        return Predictor(self.model, self.schema, self.encoder, self.calibration, batch_size, self.device)


@checked
def load_run(
    folder: str | Path,
    model: str | None = None,
    *,
    system: System | None = None,
    sharded: bool = False,
    device: torch.device | str = "cpu",
) -> LoadedRun:
    """Loads a run with the best weights by validation, whatever the number of ranks that trained it.

    Args:
        folder: folder of a run, such as ``runs/my_run``, or of one model in it.
        model: name of the model; needed if the run has several.
        system: the system of the run, if it is not one of `torchrec_mtl.systems`: a name in a file is never imported.
        sharded: whether to shard the tables over all ranks, as the run's settings say; the process group must be set
            up, and all ranks must call it. Otherwise the model is plain.
        device: device of the model.

    Raises:
        InputError: if there is no such run or model, a file is damaged, or the system is unknown.
    """
    where = as_device(device)
    run, name, settings = _find(Path(folder), model)
    config = read_config(settings, system)
    schema = Schema.load(run / DATA_FOLDER)
    encoder = TableEncoder.load(run / DATA_FOLDER) if (run / DATA_FOLDER / ENCODERS_FILE).is_file() else None
    checkpoint = best_checkpoint(run / name / "checkpoints")
    built = build_model(config, schema, where)
    if sharded:
        train_model: nn.Module = distribute(built, config.training, where)[0]
    else:
        train_model = _on_device(built, where)
    load_weights(train_model, checkpoint)
    train_model.eval()
    calibration = Calibration.load(run / name, schema.tasks.funnel)
    return LoadedRun(train_model, schema, config, run / name, checkpoint, encoder, calibration, where)


def record_data(run: Path, data: str | Path) -> None:
    """Copies the schema and the encoders of prepared data, in a folder or at a URI, into the folder of a run, whole or
    not at all."""
    folder = run / DATA_FOLDER
    if folder.exists():
        return
    partial = run / f".{DATA_FOLDER}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    location = locate(data)
    for name in location.files():
        if any(fnmatch(name, pattern) for pattern in (SCHEMA_FILE, ENCODERS_FILE, "vocabulary_*.parquet")):
            (partial / name).write_bytes(location.read(name))
    publish_folder(partial, folder)


def read_config(settings: Mapping[str, Any], system: System | None = None) -> RunConfig:
    """Returns the settings of a run from what `RunConfig.as_dict` wrote.

    Raises:
        InputError: if the system is not one of `torchrec_mtl.systems` and is not given, or a setting is wrong.

    Example::

        >>> config = make_config(SYSTEMS["tafe"], Settings(), ["training.seed=3"])
        >>> read_config(config.as_dict()).training.seed
        3
    """
    name = settings["system"]
    if system is None:
        if name not in SYSTEMS:
            rule = "must be given (`system=`): a name in a file is never imported"
            raise InputError(f"`system` (={name!r}) {rule}; {not_one_of('known ones', name, SYSTEMS)}")
        system = SYSTEMS[name]
    elif system.name != name:
        raise InputError(f"`system` (={system.name!r}) must be that of the run, {name!r}")
    given = {path: value for path, value in flat(settings).items() if path not in ("system", "data", "loss")}
    fixed = {f"{kind}.{argument}" for kind in ("model_args", "loss_args") for argument in system.fixed}
    loss = settings["loss"]
    if loss != loss_name(system.loss) and loss not in LOSSES:
        rule = f"must be one of {list(LOSSES)}, or that of `system`: a name in a file is never imported"
        raise InputError(f"the run's loss (={loss!r}) {rule}")
    chosen = {path: value for path, value in given.items() if path not in fixed}
    return make_config(system, Settings(chosen), [] if loss == loss_name(system.loss) else [f"loss={loss}"])


def _find(folder: Path, model: str | None) -> tuple[Path, str, dict[str, Any]]:
    """Returns the folder of the run, the name of the model and its settings."""
    if not (folder / CONFIG_FILE).is_file() and (folder.parent / CONFIG_FILE).is_file() and model is None:
        folder, model = folder.parent, folder.name
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(f"{folder}: must be the folder of a run, but holds no {CONFIG_FILE}")
    settings = read_json(folder / CONFIG_FILE)
    if model is None and len(settings) > 1:
        raise InputError(f"{folder}: has several models, so `model` must name one of {list(settings)}")
    name = next(iter(settings)) if model is None else model
    if name not in settings:
        raise InputError(f"{folder}: {not_one_of('model', name, settings)}")
    if not (folder / DATA_FOLDER).is_dir():
        rule = "the run is of an older version; train it again"
        raise InputError(f"{folder / DATA_FOLDER}: no such folder: {rule}")
    return folder, name, settings[name]


def _on_device(model: MultiTaskTrain, device: torch.device) -> MultiTaskTrain:
    """Gives the tables, and what says which ids have their rows, which are on ``meta``, memory on a device."""
    for module in model.modules():
        if isinstance(module, (EmbeddingBagCollection, EmbeddingCollection, RowAssignment)):
            module.to_empty(device=device)
    return model
