"""The manifest that makes a folder a checkpoint, and the check that its files are as the manifest says."""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import InputError, check_at_least
from torchrec_mtl.files import digest, publish_folder, to_json, write_whole

MANIFEST = "manifest.json"
VERSION = 1
PARTIAL = ".partial"


@checked
def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """The manifest of ``checkpoint``: ``step``, ``score``, ``world_size``, ``state``, ``files``.

    Raises:
        InputError: if there is no manifest, or this version cannot read it.
    """
    file = checkpoint / MANIFEST
    if not file.is_file():
        raise InputError(f"{checkpoint}: must be a checkpoint, but holds no {MANIFEST}")
    try:
        manifest = json.loads(file.read_bytes())
        version = manifest["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: must be the manifest of a checkpoint, but is damaged ({error!r})") from error
    if version != VERSION:
        raise InputError(f"{file}: `version` (={version}) must be {VERSION}: train the run again")
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    if manifest.get("sha256") != _manifest_digest(body):
        raise InputError(f"{file}: was changed since it was written")
    return manifest


def _manifest_digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(to_json(body, sort_keys=True).encode()).hexdigest()


def _damage(checkpoint: Path, files: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Describes the first file that is not as it was written."""
    for name, written in files.items():
        file = checkpoint / name
        if not file.is_file():
            return f"{file}: is missing"
        if (size := file.stat().st_size) != written["bytes"]:
            return f"{file}: must have {written['bytes']} bytes, but has {size}"
        if digest(file) != written["sha256"]:
            return f"{file}: was changed since it was written"
    return None


@checked
def verify(checkpoint: Path, group: dist.ProcessGroup | None = None) -> dict[str, Any]:
    """Reads every file and compares it with the manifest; the ranks share the files.

    Returns:
        The manifest.

    Raises:
        InputError: on every rank, if a file is missing, cut or changed; names the file.
    """
    manifest = read_manifest(checkpoint)
    files = sorted(manifest["files"].items())
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    found = [_damage(checkpoint, dict(files[rank::world_size]))] * world_size
    if world_size > 1:
        dist.all_gather_object(found, found[0], group=group)
    for damage in found:
        if damage:
            raise InputError(damage)
    return manifest


@checked
def checkpoints(directory: Path) -> list[Path]:
    """The checkpoints in ``directory``, oldest first."""
    return sorted(path for path in directory.glob("step_*") if not path.name.endswith(PARTIAL))


@checked
def checkpoint_of(directory: Path, step: int) -> Path:
    """The folder of the checkpoint after ``step`` optimizer steps, at least 0."""
    check_at_least(0, step=step)
    return directory / f"step_{step:09d}"


def misplacement(checkpoint: Path, manifest: Mapping[str, Any], run: str | None = None) -> str | None:
    """Says why a checkpoint is not the one that its folder's name says, such as a copy; None if it is.

    Args:
        checkpoint: folder of the checkpoint.
        manifest: manifest that `read_manifest` found there.
        run: identifier of the run that owns the folder; None to accept checkpoints of any run.
    """
    if checkpoint != checkpoint_of(checkpoint.parent, manifest["step"]):
        return f"{checkpoint}: is a copy of the checkpoint after step {manifest['step']}, and is left aside"
    if run is not None and manifest.get("run", run) != run:
        return f"{checkpoint}: is a checkpoint of another run, and is left aside"
    return None


@checked
def best_checkpoint(directory: Path) -> Path:
    """The checkpoint with the highest score, the earliest of equals; copies under other names do not count.

    Raises:
        InputError: if no checkpoint has a score, or the manifest of one is damaged.
    """
    found = [(read_manifest(path), path) for path in checkpoints(directory)]
    scored = [(m["score"], path) for m, path in found if m["score"] is not None and not misplacement(path, m)]
    if not scored:
        raise InputError(f"{directory}: must hold a checkpoint with a score")
    return max(scored, key=lambda pair: pair[0])[1]


def publish(partial: Path, checkpoint: Path, body: dict[str, Any]) -> None:
    """Completes ``partial`` with its manifest and renames it, each safely on disk before the next."""
    write_whole(partial / MANIFEST, to_json({**body, "sha256": _manifest_digest(body)}, indent=1))
    publish_folder(partial, checkpoint)


def remove(checkpoint: Path) -> None:
    """Renames the checkpoint before it is removed, so that a folder with a checkpoint's name is always whole."""
    partial = checkpoint.with_name(checkpoint.name + PARTIAL)
    checkpoint.rename(partial)
    shutil.rmtree(partial)
