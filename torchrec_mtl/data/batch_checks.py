"""Checks of the values of a batch, for training loops that do not read it with `BatchLoader`."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.argument_types import check_type
from torchrec_mtl.data import checks
from torchrec_mtl.data.checks import Source
from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.schema import Field, Schema
from torchrec_mtl.errors import InputError, check_choice
from torchrec_mtl.modules import FeatureArch
from torchrec_mtl.tasks import Task, TaskForest

CHECKS = ("ids", "dense", "weights", "labels")
_SOURCE = Source("batch")


def check_batch(
    batch: Any, expected: Schema | nn.Module, tasks: TaskForest | None = None, *, skip: Sequence[str] = ()
) -> None:
    """Checks the values of a batch on the CPU, before it is copied to a device and before the model sees it.

    Sharded tables train row 0 in place of an id that they do not have, and a loss takes any number as a label. An id
    that a row stands for (`Field.unknown_row`) is refused too: put the batch through `UnknownIds` first. `BatchLoader`
    and `Split` have checked their rows already.

    Args:
        batch: `MultiTaskBatch`, TorchRec's ``Batch``, or anything with ``dense_features [B, num_dense]``,
            ``sparse_features``, ``labels [B, T]`` and perhaps ``weights [B, T]`` and ``num_padded``.
        expected: schema of the data, or a model with a `FeatureArch`, sharded or not, alone or in `MultiTaskTrain`.
        tasks: the ``T`` tasks; by default the schema's. A model does not know them: without them, labels and
            weights are not compared with ``T``, nor labels with their parents' labels.
        skip: checks to leave out, of "ids", "dense", "weights" and "labels".

    Raises:
        InputError: on the first value that breaks a rule, naming the column and the row: a tensor that is not on the
            CPU; an id outside its table; a dense value or a weight of an id that is not finite; a label weight that is
            negative or not finite, or all of them 0; a label other than its task's kind allows (0 and 1), or of a
            task without that of its parent, where they have weight; labels and weights of another shape than ``[B, T]``.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> from torchrec_mtl.data import MultiTaskBatch
        >>> schema = Schema("shop", [Field("store", 9)], TaskChain(["click", "buy"]))
        >>> ids = KeyedJaggedTensor.from_lengths_sync(["store"], torch.tensor([4, 9]), torch.tensor([1, 1]))
        >>> check_batch(MultiTaskBatch(torch.zeros(2, 0), ids, torch.zeros(2, 2)), schema)
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: batch: column 'store', row 1 (counted from 0): id (=9) must be at least 0 and below `num_embeddings` (=9)
    """  # noqa: E501  (the message)
    check_type("expected", expected, Schema | nn.Module)
    check_type("tasks", tasks, TaskForest | None)
    check_type("skip", skip, Sequence[str])
    for name in skip:
        check_choice("skip", name, CHECKS)
    if isinstance(expected, Schema):
        sizes, num_dense = {field.name: field.num_embeddings for field in expected.fields}, len(expected.dense)
        tasks = tasks or expected.tasks
    else:
        sizes, num_dense = sizes_of_model(expected)
    labels, num_rows = _array("labels", batch.labels), len(batch.labels)
    if tasks is None:
        tasks = TaskForest(*(Task(f"task_{number}") for number in range(labels.shape[1] if labels.ndim == 2 else 1)))
    if labels.ndim == 1 and len(tasks) == 1:  # as TorchRec's models have them
        labels = labels[:, None]
    shape = (num_rows, len(tasks))
    _check_shape("labels", labels, shape)
    weights = None if getattr(batch, "weights", None) is None else _array("weights", batch.weights)
    if weights is not None:
        _check_shape("weights", weights, shape)
    if "ids" not in skip:
        _check_ids(batch.sparse_features, sizes, num_rows)
    if "dense" not in skip:
        dense = _array("dense_features", batch.dense_features)
        _check_shape("dense_features", dense, (num_rows, num_dense))
        if not np.isfinite(dense).all():
            checks.check_dense(_SOURCE, [f"dense_features[:, {column}]" for column in range(num_dense)], dense)
    if weights is not None and "weights" not in skip:
        checks.check_weights(_SOURCE, [task.weight_column or task.name for task in tasks.tasks], weights)
        known = weights[: num_rows - getattr(batch, "num_padded", 0)]
        if len(known) and not known.any():
            raise InputError("batch: `weights` must not be 0 for all labels")
    if "labels" not in skip:
        known = np.ones(shape, bool) if weights is None else weights > 0
        checks.check_labels(_SOURCE, tasks, labels, known)


def sizes_of_model(model: nn.Module) -> tuple[dict[str, int], int]:
    """Returns the number of ids of each feature that a model reads, and its number of dense columns."""
    layouts = [module.layout for module in model.modules() if isinstance(module, FeatureArch)]
    if not layouts:
        raise InputError(f"`expected` (={type(model).__name__}) must be a `Schema` or a model with a `FeatureArch`")
    sizes: dict[str, int] = {}
    for layout in layouts:
        for key, size in layout.num_embeddings.items():
            sizes[key] = min(size, sizes.get(key, size))
    return sizes, layouts[0].dense_in_features


def _array(name: str, tensor: Tensor) -> Array:
    if not isinstance(tensor, Tensor):
        raise InputError(f"batch: `{name}` (a {type(tensor).__name__}) must be a tensor")
    if tensor.device.type != "cpu":
        raise InputError(f"batch: `{name}` (on {tensor.device}) must be on the CPU")
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype in (torch.bfloat16, torch.bool) else tensor).numpy()


def _check_shape(name: str, array: Array, shape: tuple[int, int]) -> None:
    if array.shape != shape:
        raise InputError(f"batch: `{name}` must be of shape {list(shape)}, not {list(array.shape)}")


def _check_ids(sparse: KeyedJaggedTensor, sizes: Mapping[str, int], num_rows: int) -> None:
    values, offsets = _array("sparse_features", sparse.values()), _array("sparse_features", sparse.offsets())
    weights = None if sparse.weights_or_none() is None else _array("sparse_features", sparse.weights())
    if values.ndim != 1:
        raise InputError(
            f"batch: the ids of `sparse_features` (of shape {list(values.shape)}) must be one after the other"
        )
    checks.check_integers(_SOURCE, "sparse_features", values)
    if offsets[-1] != len(values) or (weights is not None and len(weights) != len(values)):
        raise InputError(f"batch: the lengths and weights of `sparse_features` must be those of its {len(values)} ids")
    keys, strides = sparse.keys(), sparse.stride_per_key()
    positions = {key: position for position, key in enumerate(keys)}
    starts = [0, *itertools.accumulate(strides)]
    for key, size in sizes.items():
        if key not in positions:
            raise InputError(f"batch: `sparse_features` (with keys {list(keys)}) must have the key {key!r}")
        position = positions[key]
        if strides[position] != num_rows and not sparse.variable_stride_per_key():
            rule = f"must have those of labels ({num_rows})"
            raise InputError(f"batch: `sparse_features` (of {strides[position]} rows) {rule}")
        first, last = starts[position], starts[position + 1]
        begin, end = offsets[first], offsets[last]
        ids = values[begin:end]
        if len(ids) and (ids.min() < 0 or ids.max() >= size):
            checks.check_ids(_SOURCE, Field(key, size), ids, offsets[first : last + 1] - begin)
        if weights is not None and not np.isfinite(weights[begin:end]).all():
            checks.check_id_weights(_SOURCE, key, weights[begin:end], offsets[first : last + 1] - begin)
