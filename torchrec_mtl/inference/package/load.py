"""Loads a package and scores rows with it; the training code is not needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fbgemm_gpu  # noqa: F401  (its operations)
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
from torchrec_mtl.inference.package.manifest import (
    CANDIDATES_FILE,
    GOLDEN_FILE,
    KERNELS_FILE,
    MODEL_FILE,
    Manifest,
    rows_file,
)
from torchrec_mtl.inference.package.reference import REFERENCE_FILE, Reference
from torchrec_mtl.inference.predictor import Predictions, Rows, as_frame, read_rows, value_of_tasks
from torchrec_mtl.inference.values import largest_difference


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

    def tensors(self) -> list[Tensor]:
        """The tensors that there are."""
        return [tensor for tensor in vars(self).values() if tensor is not None]

    def check(self, num_keys: int, num_dense: int, is_weighted: bool) -> None:
        """Raises `InputError` unless shapes and types are what the compiled code reads without checks."""
        num_rows = self.lengths.shape[-1]
        expected = {
            "dense_features": ((num_rows, num_dense), torch.float32),
            "lengths": ((num_keys, num_rows), torch.int64),
            "values": ((int(self.lengths.sum()),), torch.int64),
        }
        if (self.weights is not None) != is_weighted:
            raise InputError(f"`weights` must {'' if is_weighted else 'not '}be given")
        if self.weights is not None:
            expected["weights"] = (expected["values"][0], torch.float32)
        for name, (shape, dtype) in expected.items():
            tensor = getattr(self, name)
            if tuple(tensor.shape) != shape or tensor.dtype != dtype or tensor.device.type != "cpu":
                found = f"{list(tensor.shape)}, {tensor.dtype} on {tensor.device}"
                raise InputError(f"`{name}` ({found}) must be {list(shape)}, {dtype} on the CPU")
        if num_rows < 1 or int(self.lengths.min()) < 0:
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
        self._model = _compiled(folder / MODEL_FILE)
        self._candidates = _compiled(folder / CANDIDATES_FILE) if manifest.user_keys else None
        self._rows = [
            torch.from_numpy(np.load(folder / rows_file(number), mmap_mode="c"))
            for number in range(manifest.num_rows_files)
        ]
        self.schema = Schema.load(folder) if (folder / SCHEMA_FILE).is_file() else None
        self.encoder = TableEncoder.load(folder) if (folder / ENCODERS_FILE).is_file() else None
        self.reference = Reference.load(folder) if (folder / REFERENCE_FILE).is_file() else None

    def run(self, arguments: Arguments) -> Tensor:
        """Returns p(task) ``[B, T]`` of a batch; threads may call it at the same time.

        Of values it has the columns of `torchrec_mtl.inference.values.with_values`.

        Raises:
            InputError: if a tensor has another shape or type, or an id is outside its table and has no row for unknown
                ids.
        """
        manifest = self.manifest
        arguments.check(len(manifest.keys), manifest.num_dense, manifest.is_weighted)
        return self._run(self._model, [(manifest.keys, arguments)], arguments.tensors())

    def run_candidates(self, user: Arguments, candidates: Arguments) -> Tensor:
        """Returns p(task) ``[N, T]`` of the candidates of one user, whose fields are looked up once.

        Args:
            user: one row of the keys that the package was exported with as the user's, without dense columns.
            candidates: ``N`` rows of the other keys, and of all dense columns.

        Raises:
            InputError: if the package was exported without ``user_keys``; see also `run`.
        """
        manifest = self.manifest
        if self._candidates is None:
            raise InputError(f"{self.folder}: scores no candidates: export it with the user's keys")
        user_keys, others = self._parted_keys()
        user.check(len(user_keys), 0, manifest.is_weighted)
        candidates.check(len(others), manifest.num_dense, manifest.is_weighted)
        if user.lengths.shape[1] != 1:
            raise InputError(f"`user` (of {user.lengths.shape[1]} rows) must be one row")
        given = [*user.tensors()[1:], *candidates.tensors()]
        return self._run(self._candidates, [(user_keys, user), (others, candidates)], given)

    def _run(self, model: Any, by_keys: Sequence[tuple[Sequence[str], Arguments]], given: list[Tensor]) -> Tensor:
        try:
            scores: Tensor = model.boxed_run([*given, *self._rows])[0]
        except RuntimeError as error:
            for keys, arguments in by_keys:
                self._explain(keys, arguments, error)
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
        manifest = self.manifest
        return self._predictions(self.run(arguments_of(batch, manifest.keys, manifest.is_weighted)), worth)

    def _predictions(self, scores: Tensor, worth: Array | None) -> Predictions:
        return Predictions.of_scores(self.manifest.tasks, scores.double().numpy(), worth=worth)

    def predict_candidates(
        self, user: Mapping[str, Any], candidates: Rows, *, values: Mapping[str, float] | None = None
    ) -> Predictions:
        """Predicts each task for each candidate of one user; the same as `predict` of rows that all repeat the user.

        Args:
            user: the user's columns, by name.
            candidates: rows of the other columns.
            values: see `predict`.

        Raises:
            InputError: if a column is given twice, or a field of the user's depends on the candidate; see also
                `predict` and `run_candidates`.
        """
        if self.schema is None:
            raise InputError(f"{self.folder}: has no schema, so it takes tensors only: see `run_candidates`")
        manifest = self.manifest
        worth = value_of_tasks(manifest.tasks, values)
        frame, of_user = as_frame(candidates), as_frame([user])
        if twice := sorted(set(frame.columns) & set(of_user.columns)):
            raise InputError(f"`user` must not have the column {twice[0]!r}, which the candidates have")
        split = read_rows(frame.join(of_user, how="cross"), self.schema, self.encoder, "candidates")
        batch = split.batch(torch.arange(len(split)))
        user_keys, others = self._parted_keys()
        given = (_one_row(arguments_of(batch, user_keys, manifest.is_weighted), user_keys),)
        scores = self.run_candidates(*given, arguments_of(batch, others, manifest.is_weighted))
        return self._predictions(scores, worth)

    def _parted_keys(self) -> tuple[list[str], list[str]]:
        """Keys of the user's ids, and of the candidates'."""
        keys, of_user = self.manifest.keys, self.manifest.user_keys
        return [key for key in keys if key in of_user], [key for key in keys if key not in of_user]

    def _explain(self, keys: Sequence[str], arguments: Arguments, error: RuntimeError) -> None:
        sizes, first = dict(zip(self.manifest.keys, self.manifest.num_embeddings, strict=True)), 0
        for key, lengths in zip(keys, arguments.lengths.sum(1).tolist(), strict=True):
            size = sizes[key]
            ids = arguments.values[first : first + lengths]
            if key not in self.manifest.unknown_rows and bool(((ids < 0) | (ids >= size)).any()):
                rule = f"must be from 0 to {size - 1}, as no row stands for unknown ones"
                raise InputError(f"ids of {key!r} {rule}") from error
            first += lengths


def _one_row(arguments: Arguments, keys: Sequence[str]) -> Arguments:
    """Returns the first row of ids that are the same in all rows."""
    kept, first = list[Arguments](), 0
    for key, lengths in zip(keys, arguments.lengths, strict=True):
        part = slice(first, first + int(lengths.sum()))
        first = part.stop
        tensors = [arguments.values[part], *([] if arguments.weights is None else [arguments.weights[part]])]
        by_row = [each.view(len(lengths), -1) for each in tensors] if bool((lengths == lengths[0]).all()) else []
        if not by_row or any(bool((each != each[0]).any()) for each in by_row):
            raise InputError(f"`user`: the field {key!r} must not depend on the candidate")
        kept.append(Arguments(torch.empty(0), by_row[0][0], lengths[:1], *(each[0] for each in by_row[1:])))
    return Arguments(
        torch.empty(1, 0),
        torch.cat([each.values for each in kept]),
        torch.stack([each.lengths for each in kept]),
        None if arguments.weights is None else torch.cat([each.weights for each in kept if each.weights is not None]),
    )


def _compiled(file: Path) -> Any:
    return torch._C._aoti.AOTIModelPackageLoader(str(file), "model", False, 1, -1)


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
    difference = largest_difference(package.run(given), torch.from_numpy(golden["scores"]), manifest.tasks)
    if not difference <= manifest.tolerance:
        raise InputError(f"{folder}: the scores of its golden batch differ by {difference:.2g} from those stored")
    return package
