"""Writes, keeps, removes and reads the checkpoints of one run."""

import contextlib
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed._shard.sharded_tensor import ShardedTensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torchrec.optim.keyed import KeyedOptimizer

from torchrec_mtl.errors import InputError, TrainingError
from torchrec_mtl.files import digest, write_whole
from torchrec_mtl.training.checkpoint.manifest import (
    PARTIAL,
    VERSION,
    checkpoint_of,
    checkpoints,
    misplacement,
    publish,
    read_manifest,
    remove,
    verify,
)
from torchrec_mtl.training.checkpoint.pending_ids import pending_ids, restore_pending_ids, space_for_pending_ids
from torchrec_mtl.training.checkpoint.random_state import random_state, restore_random_state
from torchrec_mtl.training.checkpoint.reading import read_tensors
from torchrec_mtl.training.process_group import on_first_rank

_RUN = ".run"  # file with the run's identifier, by which checkpoints that were copied from elsewhere are known


@contextlib.contextmanager
def _as_training_error(checkpoint: Path) -> Iterator[None]:
    """Turns a failed write, such as one to a full disk, into a one-sentence error, and removes what was written."""
    try:
        yield
    except (CheckpointException, InputError, OSError, RuntimeError) as error:
        failures = error.failures.values() if isinstance(error, CheckpointException) else [(error, None)]
        causes = "; ".join(sorted({" ".join(str(cause).split()) for cause, _ in failures}))
        shutil.rmtree(checkpoint.with_name(checkpoint.name + PARTIAL), ignore_errors=True)
        raise TrainingError(f"{checkpoint}: could not be written, {causes}; the checkpoint before it stays") from error


class Checkpointer:
    """Writes the checkpoints of one run, and keeps the newest and the best ones.

    All ranks must create one and make the same calls. All of them must see the folder.

    Args:
        directory: folder of the checkpoints; what a killed run left of its last write is removed.
        group: gloo group of all ranks that nothing else uses while files are written.
        keep_last: see `CheckpointConfig`.
        asynchronous: see `CheckpointConfig`.

    Raises:
        InputError: on every rank, if ``directory`` cannot be made or cleared.
    """

    def __init__(
        self, directory: Path, group: dist.ProcessGroup, keep_last: int = 1, asynchronous: bool = False
    ) -> None:
        self.directory, self.group = directory, group
        self.keep_last, self.asynchronous = keep_last, asynchronous
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._warned: set[str] = set()
        self.run = on_first_rank(self._clear, group)

    def _clear(self) -> str:
        """Makes the folder, removes what a killed run left of its last write, and returns the run's identifier."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            for left in self.directory.glob(f"step_*{PARTIAL}"):
                shutil.rmtree(left)
            if not (self.directory / _RUN).is_file():
                write_whole(self.directory / _RUN, uuid4().hex)
            return (self.directory / _RUN).read_text()
        except OSError as error:
            raise InputError(f"{self.directory}: must be a folder that can be written to ({error})") from error

    def save(
        self, step: int, model: nn.Module, optimizer: KeyedOptimizer, state: Mapping[str, Any], score: float | None
    ) -> None:
        """Writes ``step_<step>``, in the background if so configured, after waiting for the previous write.

        Args:
            step: number of optimizer steps taken.
            model: model returned by `distribute`.
            optimizer: optimizer returned by `distribute`.
            state: the rest of the state, in values that JSON holds, the same on all ranks.
            score: score by which the best checkpoint is chosen, higher is better; None if it was not measured.

        Raises:
            TrainingError: if this or the previous write fails, or a value is NaN or infinite on any rank; existing
                checkpoints stay.
        """
        self.wait()
        of_optimizer = _with_tensors(optimizer.state_dict())
        tensors = {"model": model.state_dict(), "optimizer": of_optimizer, "random": random_state()}
        tensors |= pending_ids(model)
        _check_tensors(tensors)
        self._check_finite(step, tensors)
        body = {"version": VERSION, "run": self.run, "step": step, "score": score, "state": state}
        body["world_size"] = dist.get_world_size()
        if not self.asynchronous:
            self._write(step, tensors, body)
            return
        staged = BlockingAsyncStager(cache_staged_state_dict=False).stage(tensors)

        def write() -> None:
            try:
                self._write(step, staged, body)
            except BaseException as error:  # raised again in `wait`
                self._error = error

        self._thread = threading.Thread(target=write, name=f"checkpoint {step}")
        self._thread.start()

    def _check_finite(self, step: int, tensors: dict[str, Any]) -> None:
        own = next((name for kind in ("model", "optimizer") for name in not_finite(tensors[kind], kind)), None)
        of_ranks: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(of_ranks, own, group=self.group)
        for rank, name in enumerate(of_ranks):
            if name is not None:
                raise TrainingError(
                    f"`{name}` of rank {rank} is not finite after step {step}, so no checkpoint is written and those "
                    "before it stay; take lower learning rates or limit `optimizer.max_gradient_norm`, and another name"
                )

    def wait(self) -> None:
        """Waits until the write in the background, if any, is done.

        Raises:
            TrainingError: if the write failed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _write(self, step: int, tensors: dict[str, Any], body: dict[str, Any]) -> None:
        checkpoint = checkpoint_of(self.directory, step)
        partial = checkpoint.with_name(checkpoint.name + PARTIAL)
        with _as_training_error(checkpoint):
            dcp.save(tensors, checkpoint_id=partial, process_group=self.group)
            files = self._digests(partial)

            def finish() -> None:
                try:
                    publish(partial, checkpoint, {**body, "files": files})
                    self._prune()
                except OSError as error:
                    raise InputError(str(error)) from error

            on_first_rank(finish, self.group)

    def _digests(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Size and SHA-256 of every file; the ranks share the work."""
        names = sorted(path.name for path in folder.iterdir())
        own = {
            name: {"bytes": (folder / name).stat().st_size, "sha256": digest(folder / name)}
            for name in names[dist.get_rank() :: dist.get_world_size()]
        }
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, own, group=self.group)
        return {name: part[name] for part in parts for name in part}

    def _prune(self) -> None:
        """Removes checkpoints that are neither among the newest nor the best; damaged and foreign ones stay."""
        scores: dict[Path, float | None] = {}
        for path in checkpoints(self.directory):
            try:
                if self._is_own(path, manifest := read_manifest(path)):
                    scores[path] = manifest["score"]
            except InputError as error:
                self._warn(str(error))
        scored = {path: score for path, score in scores.items() if score is not None}
        best = max(scored, key=scored.__getitem__) if scored else None
        for path in list(scores)[: -self.keep_last]:
            if path != best:
                remove(path)

    def _is_own(self, checkpoint: Path, manifest: Mapping[str, Any]) -> bool:
        if reason := misplacement(checkpoint, manifest, self.run):
            self._warn(reason)
        return reason is None

    def _warn(self, text: str) -> None:
        """Prints a warning once; the first rank calls it."""
        if text not in self._warned:
            self._warned.add(text)
            print(f"warning: {text}", file=sys.stderr, flush=True)

    def latest(self) -> Path | None:
        """The newest checkpoint of the run, if there is one; the same on all ranks. Older ones are not read.

        Raises:
            InputError: on every rank, if the manifest of the newest one is damaged.
        """
        self.wait()
        newest_first = checkpoints(self.directory)[::-1]
        return on_first_rank(
            lambda: next((path for path in newest_first if self._is_own(path, read_manifest(path))), None), self.group
        )

    def load(self, checkpoint: Path, model: nn.Module, optimizer: KeyedOptimizer) -> dict[str, Any]:
        """Restores model, optimizer and, if as many ranks wrote the checkpoint, the random state.

        With another number of ranks, dropout continues from the present state of this rank's generators.

        Returns:
            The ``state`` that was given to `save`.

        Raises:
            InputError: if a file is damaged, or the checkpoint does not fit the model or its optimizer.
        """
        manifest = verify(checkpoint, self.group)
        optimizer.init_state()  # takes a step, so that lazy optimizers have the state that is read into
        of_optimizer = optimizer.state_dict()
        tensors: dict[str, Any] = {"model": model.state_dict(), "optimizer": _with_tensors(of_optimizer)}
        if same_ranks := manifest["world_size"] == dist.get_world_size():
            tensors["random"] = random_state()
        tensors |= space_for_pending_ids(model, checkpoint)
        read_tensors(tensors, checkpoint, self.group)
        model.load_state_dict(tensors["model"])
        states = {**of_optimizer["state"], **tensors["optimizer"]["state"]}
        optimizer.load_state_dict({**tensors["optimizer"], "state": states})
        optimizer.zero_grad()
        restore_pending_ids(model, tensors)
        if same_ranks:
            restore_random_state(tensors["random"])
        return manifest["state"]


def _with_tensors(of_optimizer: Mapping[str, Any]) -> dict[str, Any]:
    """The state without the parameters that have none, as with SGD: of these only the first rank's would be written."""
    return {**of_optimizer, "state": {name: state for name, state in of_optimizer["state"].items() if state}}


def not_finite(value: Any, path: str) -> Iterator[str]:
    """Yields the paths of floating-point tensors, or local shards of them, that hold a value which is not finite."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from not_finite(inner, f"{path}.{key}")
        return
    for part in [shard.tensor for shard in value.local_shards()] if isinstance(value, ShardedTensor) else [value]:
        # NaN is least and greatest; unlike `isfinite` of the tensor, the two need no memory
        if part.is_floating_point() and part.numel() and not all(bound.isfinite() for bound in part.aminmax()):
            yield path


def _check_tensors(value: Any, path: str = "") -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_tensors(inner, f"{path}.{key}" if path else str(key))
    elif not isinstance(value, torch.Tensor):
        raise TrainingError(f"`{path}` (={value!r}) must be a tensor to be kept in a checkpoint")
