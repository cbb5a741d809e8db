"""Loads a package and scores rows with it; the training code is not needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fbgemm_gpu  # type: ignore[import-untyped]  # noqa: F401  (its operations)
import numpy as np
import torch
from torch import Tensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.data import MultiTaskBatch, Schema
from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.schema import SCHEMA_FILE
from torchrec_mtl.data.table import TableEncoder
from torchrec_mtl.data.table.encoders import ENCODERS_FILE
from torchrec_mtl.errors import InputError
from torchrec_mtl.inference.conditionals import divided
from torchrec_mtl.inference.package.manifest import GOLDEN_FILE, KERNELS_FILE, MODEL_FILE, Manifest, rows_file
from torchrec_mtl.inference.package.reference import REFERENCE_FILE, Reference
from torchrec_mtl.inference.predictor import Predictions, Rows, read_rows, value_of_tasks


@dataclass(frozen=True)
class Arguments:
    """A batch as a package takes it.

    Args:
        dense_features: ``[B, num_dense]``, float32.
        values: ids ``[V]``, int64, of the first key for all rows, then of the next.
        lengths: number of ids ``[F, B]``, int64.
        weights: weights of the ids ``[V]``, float32; None if the tables are not weighted.
    """

    dense_features: Tensor
    values: Tensor
    lengths: Tensor
    weights: Tensor | None = None

    def arrays(self) -> dict[str, Array]:
        """The tensors that there are, by name."""
        return {name: tensor.numpy() for name, tensor in vars(self).items() if tensor is not None}

    def check(self, manifest: Manifest) -> None:
        """Raises `InputError` unless shapes and types are what the compiled code reads without checks."""
        num_keys, num_rows = len(manifest.keys), self.lengths.shape[-1]
        expected = {
            "dense_features": ((num_rows, manifest.num_dense), torch.float32),
            "lengths": ((num_keys, num_rows), torch.int64),
            "values": ((int(self.lengths.sum()),), torch.int64),
        }
        if (self.weights is not None) != manifest.is_weighted:
            raise InputError(f"`weights` must {'' if manifest.is_weighted else 'not '}be given")
        if self.weights is not None:
            expected["weights"] = (expected["values"][0], torch.float32)
        for name, (shape, dtype) in expected.items():
            tensor = getattr(self, name)
            if tuple(tensor.shape) != shape or tensor.dtype != dtype or tensor.device.type != "cpu":
                found = f"{list(tensor.shape)}, {tensor.dtype} on {tensor.device}"
                raise InputError(f"`{name}` ({found}) must be {list(shape)}, {dtype} on the CPU")
        if num_rows < 1 or bool((self.lengths < 0).any()):
            raise InputError("`lengths` must have at least one row, and be at least 0")


def arguments_of(batch: MultiTaskBatch, keys: Sequence[str], is_weighted: bool) -> Arguments:
    """Returns a batch as a package takes it."""
    by_key = batch.sparse_features.to_dict()
    for key in keys:
        if key not in by_key:
            raise InputError(f"`sparse_features` (with keys {list(by_key)}) must have the key {key!r}")
    parts = [by_key[key] for key in keys]
    return Arguments(
        batch.dense_features.float().contiguous(),
        torch.cat([part.values().long() for part in parts]),
        torch.stack([part.lengths().long() for part in parts]),
        torch.cat([part.weights().float() for part in parts]) if is_weighted else None,
    )


class Package:
    """A package in memory; make one with `load_package`.

    Attributes:
        folder: folder of the package.
        manifest: what the package is.
        schema: schema of the rows of ids, if the package has one.
        encoder: encoder of raw rows, if the package has one.
        reference: what rows and scores are compared with, if the package has it.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        if KERNELS_FILE in manifest.files:
            _define_operators(folder / KERNELS_FILE)
        self._loader = torch._C._aoti.AOTIModelPackageLoader(str(folder / MODEL_FILE), "model", False, 1, -1)
        self._rows = [
            torch.from_numpy(np.load(folder / rows_file(number), mmap_mode="c"))
            for number in range(manifest.num_rows_files)
        ]
        self.schema = Schema.load(folder) if (folder / SCHEMA_FILE).is_file() else None
        self.encoder = TableEncoder.load(folder) if (folder / ENCODERS_FILE).is_file() else None
        self.reference = Reference.load(folder) if (folder / REFERENCE_FILE).is_file() else None

    def run(self, arguments: Arguments) -> Tensor:
        """Returns p(task) ``[B, T]`` of a batch; threads may call it at the same time.

        Raises:
            InputError: if a tensor has another shape or type, or an id is outside its table and has no row for unknown
                ids.
        """
        arguments.check(self.manifest)
        given = [arguments.dense_features, arguments.values, arguments.lengths]
        given += [] if arguments.weights is None else [arguments.weights]
        try:
            scores: Tensor = self._loader.boxed_run([*given, *self._rows])[0]
        except RuntimeError as error:
            self._explain(arguments, error)
            raise
        return scores

    def predict(self, rows: Rows, *, values: Mapping[str, float] | None = None, source: str = "rows") -> Predictions:
        """Predicts each task for each row, as `torchrec_mtl.Predictor.predict` does.

        Args:
            rows: raw rows if the package has an encoder, otherwise rows of ids and dense columns.
            values: value of each task that the ranking score counts, by name; others count 0.
            source: name of the rows in messages.

        Raises:
            InputError: if the package has no schema, a column is missing, or a value breaks a rule.
        """
        if self.schema is None:
            raise InputError(f"{self.folder}: has no schema, so it takes tensors only: see `run`")
        worth = value_of_tasks(self.manifest.tasks, values)
        split = read_rows(rows, self.schema, self.encoder, source)
        return self.score_batch(split.batch(torch.arange(len(split))), worth)

    def score_batch(self, batch: MultiTaskBatch, worth: Array | None = None) -> Predictions:
        """Returns the predictions for a batch; ``worth`` is the value of each task, ``[T]``.

        Raises:
            InputError: as `run` does.
        """
        tasks = self.manifest.tasks
        marginal = self.run(arguments_of(batch, self.manifest.keys, self.manifest.is_weighted)).double().numpy()
        return Predictions(tasks, marginal, divided(marginal, tasks), None if worth is None else marginal @ worth)

    def _explain(self, arguments: Arguments, error: RuntimeError) -> None:
        first = 0
        for key, size, lengths in zip(
            self.manifest.keys, self.manifest.num_embeddings, arguments.lengths.sum(1).tolist(), strict=True
        ):
            ids = arguments.values[first : first + lengths]
            if key not in self.manifest.unknown_rows and bool(((ids < 0) | (ids >= size)).any()):
                rule = f"must be from 0 to {size - 1}, as no row stands for unknown ones"
                raise InputError(f"ids of {key!r} {rule}") from error
            first += lengths


def _define_operators(file: Path) -> None:
    """Defines the operators of a package, unless the process has them: a process has each operator once."""
    if not hasattr(torch.ops.torchrec_mtl, "small_attention"):
        torch.ops.load_library(file)


@checked
def load_package(folder: str | Path) -> Package:
    """Loads a package after its hashes are checked, and scores its golden batch.

    A package is native code: load only what you trust, as the hashes say that nothing changed, not who made it.

    Args:
        folder: folder of a package.

    Raises:
        InputError: if it is damaged, for another PyTorch or processor, or does not score its golden batch as it did.
    """
    folder = Path(folder)
    manifest = Manifest.load(folder)
    try:
        package = Package(folder, manifest)
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"{folder}: cannot be loaded ({str(error).splitlines()[0]})") from error
    golden: Mapping[str, Any] = np.load(folder / GOLDEN_FILE)
    given = Arguments(**{name: torch.from_numpy(golden[name]) for name in golden if name != "scores"})
    difference = float((package.run(given) - torch.from_numpy(golden["scores"])).abs().max())
    if not difference <= manifest.tolerance:
        raise InputError(f"{folder}: the scores of its golden batch differ by {difference:.2g} from those stored")
    return package
