"""The rows of a split as whole columns, for models that are fitted to a table."""

from typing import Any, NamedTuple

import numpy as np

from torchrec_mtl.data import Field, Schema, Split, StreamedSplit
from torchrec_mtl.data.lists import Array
from torchrec_mtl.jobs.single_run import EVALUATION_BATCH_SIZE, loader


class Column(NamedTuple):
    """The ids of a field: values ``[V]``, lengths ``[N]``, weights ``[V]`` or None."""

    values: Array
    lengths: Array
    weights: Array | None
    field: Field


class Rows(NamedTuple):
    """N rows of a split; labels and their weights are ``[N, T]``, dense columns ``[N, num_dense]``."""

    columns: tuple[Column, ...]
    dense: Array
    labels: Array
    weights: Array

    def take(self, kept: Array) -> "Rows":
        """The rows that ``kept``, booleans ``[N]``, marks."""
        columns = []
        for column in self.columns:
            of_ids = np.repeat(kept, column.lengths)
            weights = None if column.weights is None else column.weights[of_ids]
            columns.append(column._replace(values=column.values[of_ids], lengths=column.lengths[kept], weights=weights))
        return Rows(tuple(columns), self.dense[kept], self.labels[kept], self.weights[kept])


def read_rows(split: Split | StreamedSplit, schema: Schema, most: int | None = None) -> Rows:
    """The rows of a split, or ``most`` of them, drawn evenly."""
    share = 1.0 if most is None else min(1.0, most / len(split))
    generator, parts = np.random.default_rng(0), []
    for batch in loader(split, EVALUATION_BATCH_SIZE, with_groups=False):
        part = rows_of_batch(batch, schema)
        parts.append(part if share == 1 else part.take(generator.random(len(part.labels)) < share))
    columns = []
    for of_field in zip(*(part.columns for part in parts), strict=True):
        weights = None if of_field[0].weights is None else np.concatenate([each.weights for each in of_field])
        values, lengths = (np.concatenate([each[i] for each in of_field]) for i in (0, 1))
        columns.append(Column(values, lengths, weights, of_field[0].field))
    return Rows(tuple(columns), *(np.concatenate([part[i] for part in parts]) for i in (1, 2, 3)))


def rows_of_batch(batch: Any, schema: Schema) -> Rows:
    """The rows of a batch."""
    fields = batch.sparse_features.to_dict()
    columns = []
    for each in schema.fields:
        ids = fields[each.name]
        weights = ids.weights_or_none()
        column = (ids.values().numpy().astype(np.int32), ids.lengths().numpy().astype(np.int32))
        columns.append(Column(*column, None if weights is None else weights.numpy(), each))
    labels = batch.labels.numpy()
    weights = np.ones_like(labels) if batch.weights is None else batch.weights.numpy()
    return Rows(tuple(columns), batch.dense_features.numpy(), labels, weights)
