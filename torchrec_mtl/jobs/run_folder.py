"""The folder of a run: a new one, or that of an unfinished run with the same settings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torchrec_mtl.errors import InputError
from torchrec_mtl.files import read_json, to_json, write_whole
from torchrec_mtl.jobs.folder_lock import LOCK
from torchrec_mtl.jobs.run_config import first_difference

Settings = Mapping[str, Mapping[str, Any]]  # of each model
CONFIG_FILE = "config.json"
_BEFORE_CONFIG = {LOCK, CONFIG_FILE + ".partial"}  # what a job that was killed at once may leave


def is_finished(directory: Path, settings: Settings) -> bool:
    """Whether ``directory`` holds the finished run with ``settings``, by model.

    Raises:
        InputError: if it holds a finished run with other settings.
    """
    if not (directory / "results.json").exists():
        return False
    if difference := _first_difference(directory / CONFIG_FILE, settings):
        raise InputError(f"`name` (={directory.name!r}) is that of a finished run with {difference}; name another")
    return True


def open_run(directory: Path, settings: Settings) -> None:
    """Writes the settings into a folder without any, or compares them with the unfinished run's.

    Raises:
        InputError: if ``directory`` is no run's, or that of a run with other settings.
    """
    file = directory / CONFIG_FILE
    if file.is_file():
        if difference := _first_difference(file, settings):
            raise InputError(
                f"{file}: the unfinished run was made with {difference}; name another, or remove the folder"
            )
    elif others := {path.name for path in directory.iterdir()} - _BEFORE_CONFIG:
        rule = f"must be a new run's, but {directory} is there and is no run: it holds {min(others)!r}"
        raise InputError(f"`name` (={directory.name!r}) {rule}")
    else:
        write_whole(file, to_json(settings, indent=2) + "\n")


def _first_difference(file: Path, settings: Settings) -> str | None:
    made = {model: config for model, config in read_json(file).items() if isinstance(config, Mapping)}
    for model in sorted({*made, *settings}):
        if difference := first_difference(made.get(model, {}), settings.get(model, {})):
            return f"{model}.{difference}"
    return None
