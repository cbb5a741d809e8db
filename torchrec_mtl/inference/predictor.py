"""Predicts the steps of a funnel for rows in any form: raw, as ids, or as KeyedJaggedTensors."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.data import Schema, Split
from torchrec_mtl.data.lists import Array, from_lists
from torchrec_mtl.data.table import TableEncoder
from torchrec_mtl.errors import InputError, check_at_least, not_one_of
from torchrec_mtl.inference.calibration import Calibration
from torchrec_mtl.inference.conditionals import conditional_log_odds, divided, sigmoid
from torchrec_mtl.inference.values import columns_of_scores, with_values
from torchrec_mtl.tasks import TaskForest

Rows: TypeAlias = Any  # pa.Table | pa.RecordBatch | pl.DataFrame | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Predictions:
    """The predictions for N rows.

    Args:
        tasks: the ``T`` tasks.
        marginal: p(task) from the impression on, float64 ``[N, T]``; of a value the mean, p(step before) E[value | step
            before]; NaN of quantiles and classes.
        conditional: p(task | step before), float64 ``[N, T]``, at most 1; p(task) for a task that needs no other. Of a
            value it is E[value | step before].
        score: ranking score ``[N]``: the sum of p(task) times the task's value; None if no values were given.
        further: quantiles, and probabilities of classes, by the names of their columns, float64 ``[N]`` each, where the
            step before happened.
    """

    tasks: TaskForest
    marginal: Array
    conditional: Array
    score: Array | None = None
    further: Mapping[str, Array] = dataclasses.field(default_factory=dict)

    @classmethod
    def of_scores(
        cls, tasks: TaskForest, scores: Array, conditional: Array | None = None, worth: Array | None = None
    ) -> "Predictions":
        """Returns the predictions of the scores ``[N, S]`` that `torchrec_mtl.inference.values.with_values` returns.

        Args:
            tasks: the ``T`` tasks.
            scores: scores.
            conditional: p(task | step before) of the tasks that happen or not; by default, quotients of the scores.
            worth: value of each task, ``[T]``.
        """
        first = len(tasks.funnel)
        marginal = np.full((len(scores), len(tasks)), np.nan)
        marginal[:, :first] = scores[:, :first]
        if conditional is None:
            conditional = divided(marginal[:, :first], tasks.funnel) if first else marginal[:, :0]
        conditional, further = np.concatenate([conditional, marginal[:, first:]], axis=1), dict[str, Array]()
        for place, (task, columns) in enumerate(zip(tasks.tasks, columns_of_scores(tasks), strict=True)):
            found, parent = scores[:, columns].astype(np.float64), tasks.parents[place]
            if not task.kind.has_mean:
                after = "" if task.after is None else f"_after_{task.after}"
                further |= {f"{n}{after}": each for n, each in zip(task.kind.columns(task.name), found.T, strict=True)}
            elif not task.is_binary:
                marginal[:, place] = conditional[:, place] = found[:, 0]
                if parent is not None:
                    before = marginal[:, parent]
                    conditional[:, place] = np.divide(found[:, 0], before, out=np.zeros(len(found)), where=before > 0)
        predictions = cls(tasks, marginal, conditional, further=further)
        return predictions if worth is None else replace(predictions, score=predictions.worth(worth))

    def worth(self, values: Array) -> Array:
        """Returns the ranking score ``[N]`` for the value of each task, ``[T]``."""
        counted = [task.kind.has_mean for task in self.tasks.tasks]
        return np.asarray(self.marginal[:, counted] @ values[counted])

    def columns(self) -> dict[str, Array]:
        """Returns the columns of `to_polars`, ``[N]`` each."""
        named = [(task, each) for task, each in enumerate(self.tasks.tasks) if each.kind.has_mean]
        columns = {each.name: self.marginal[:, task] for task, each in named}
        for task, each in named:
            if each.after is not None:
                columns[f"{each.name}_after_{each.after}"] = self.conditional[:, task]
        return {**columns, **self.further, **({} if self.score is None else {"score": self.score})}

    def to_polars(self) -> pl.DataFrame:
        """Returns columns ``<task>``, ``<task>_after_<step before>`` for each task with one, and ``score``.

        Of quantiles, there is one for each: ``<task>_0.9``, or ``<task>_0.9_after_<step before>``; of classes, one for
        the probability of each: ``<task>_0``.
        """
        return pl.DataFrame(self.columns())


class Predictor:
    """Predicts with a trained model.

    Args:
        model: ``model(dense_features, sparse_features) -> logits [B, T]``, sharded or not; it is set to evaluation.
        schema: schema of the data that it was trained on.
        encoder: encoder of raw rows; None if rows come as ids.
        calibration: calibration of the probabilities, if there is one.
        batch_size: largest number of rows that go through the model at once.
        device: device of the model.

    Raises:
        InputError: if ``batch_size`` is below 1.

    Example::

        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
        >>> from torchrec_mtl.data import Field
        >>> from torchrec_mtl.models import SharedBottom
        >>> from torchrec_mtl.tasks import TaskChain
        >>> schema = Schema("shop", [Field("item", 9)], TaskChain(["click", "buy"]))
        >>> tables = EmbeddingBagCollection(tables=schema.embedding_configs(4))
        >>> predictor = Predictor(SharedBottom(tables, schema.tasks), schema)
        >>> predictor.predict([{"item": 3}, {"item": 8}], values={"buy": 20.0}).to_polars().columns
        ['click', 'buy', 'buy_after_click', 'score']
    """

    @checked
    def __init__(
        self,
        model: nn.Module,
        schema: Schema,
        encoder: TableEncoder | None = None,
        calibration: Calibration | None = None,
        batch_size: int = 4096,
        device: torch.device | str = "cpu",
    ) -> None:
        check_at_least(1, batch_size=batch_size)
        self.model, self.schema, self.encoder, self.calibration = model.eval(), schema, encoder, calibration
        self.batch_size, self.device = batch_size, as_device(device)

    def predict(
        self,
        rows: Rows,
        dense_features: Tensor | None = None,
        *,
        values: Mapping[str, float] | None = None,
        source: str = "rows",
        first_row: int = 0,
    ) -> Predictions:
        """Predicts each task for each row.

        Args:
            rows: raw rows if there is an encoder, otherwise rows of ids and dense columns, as the prepared files have
                them: a list of dictionaries, an Arrow table or batch, a Polars frame. Or a KeyedJaggedTensor of ids.
            dense_features: ``[N, num_dense]``, beside a KeyedJaggedTensor.
            values: value of each task that the ranking score counts, by name; others count 0. Of a task that is a
                value, it is what one unit counts.
            source: name of the rows in messages.
            first_row: number of the first row in messages.

        Raises:
            InputError: if a column is missing, a value breaks a rule, there is no row, or ``values`` names no task.
        """
        worth = value_of_tasks(self.schema.tasks, values)
        if isinstance(rows, KeyedJaggedTensor):
            dense = torch.empty(rows.stride(), 0) if dense_features is None else dense_features
            logits = self._logits(dense, rows)
        else:
            split = read_rows(rows, self.schema, self.encoder, source, first_row)
            starts = range(0, len(split), self.batch_size)
            batches = (split.batch(torch.arange(start, min(start + self.batch_size, len(split)))) for start in starts)
            logits = np.concatenate([self._logits(each.dense_features, each.sparse_features) for each in batches])
        return self.from_logits(logits, worth)

    def from_logits(self, logits: Array, worth: Array | None = None) -> Predictions:
        """Returns the predictions of outputs ``[N, L]``; ``worth`` is the value of each task, ``[T]``."""
        tasks, funnel, conditional = self.schema.tasks, self.schema.tasks.funnel, None
        if self.calibration is None and len(funnel):
            conditional = sigmoid(conditional_log_odds(logits[:, : len(funnel)], funnel))
        return Predictions.of_scores(tasks, self.scores(logits), conditional, worth)

    def scores(self, logits: Array) -> Array:
        """Returns the scores ``[N, S]`` of outputs ``[N, L]``, see `torchrec_mtl.inference.values.with_values`."""
        of_funnel = logits[:, : len(self.schema.tasks.funnel)]
        marginal = sigmoid(of_funnel) if self.calibration is None else self.calibration.apply(of_funnel)
        given = torch.from_numpy(marginal), torch.from_numpy(np.asarray(logits, np.float64))
        return np.asarray(with_values(*given, self.schema.tasks).numpy())

    @torch.no_grad()
    def _logits(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Array:
        self.model.eval()
        logits = self.model(dense_features.to(self.device), sparse_features.to(self.device))
        return np.asarray(logits.float().cpu().numpy())


def value_of_tasks(tasks: TaskForest, values: Mapping[str, float] | None) -> Array | None:
    """Returns the value of each task, ``[T]``, given values by name; None for None.

    Raises:
        InputError: if ``values`` names no task, or one without an expected value, or one is not finite.
    """
    if values is None:
        return None
    for name, value in values.items():
        if name not in tasks.names:
            raise InputError(f"`values`: {not_one_of('task', name, tasks.names)}")
        if not tasks.tasks[tasks.index(name)].kind.has_mean:
            raise InputError(f"`values` must not count {name!r}, which has no expected value")
        if not np.isfinite(value):
            raise InputError(f"`values` (={value}) of task {name!r} must be finite")
    return np.array([values.get(name, 0.0) for name in tasks])


def read_rows(
    rows: Rows, schema: Schema, encoder: TableEncoder | None = None, source: str = "rows", first_row: int = 0
) -> Split:
    """Returns rows in any form as ids and dense columns: raw rows if there is an encoder.

    Raises:
        InputError: if there is no row, a column is missing, or a value breaks a rule.
    """
    frame = as_frame(rows)
    if not frame.height:
        raise InputError(f"{source}: must have at least one row")
    if encoder is not None:
        frame = encoder.encode(frame.to_arrow().combine_chunks().to_batches()[0], source, first_row)
    return unlabelled(schema, frame, source)


def as_device(device: torch.device | str) -> torch.device:
    """Returns a device by its name; raises `InputError` if there is no such kind of device."""
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise InputError(f"`device` (={device!r}) must name a device, such as 'cpu' or 'cuda:0'") from error


def unlabelled(schema: Schema, frame: pl.DataFrame, source: str = "rows") -> Split:
    """Returns rows of ids and dense columns as a `Split`, whose labels are all 0.

    Raises:
        InputError: if a column is missing, or a value breaks a rule of the schema.
    """
    for name in (*schema.field_names, *schema.id_weight_columns, *schema.dense):
        if name not in frame.columns:
            raise InputError(f"{source}: column {name!r} is missing; the columns are {frame.columns}")
        if frame[name].null_count():
            row = frame[name].is_null().arg_max()
            raise InputError(f"{source}: column {name!r}, row {row} (counted from 0): must not be null")
    ids: dict[str, Any] = {}
    for field in schema.fields:
        column = frame[field.name]
        if isinstance(column.dtype, (pl.List, pl.Array)) != field.multi_valued:
            kind = "lists of ids" if field.multi_valued else "one id a row"
            raise InputError(f"{source}: column {field.name!r} must hold {kind}, not {column.dtype}")
        if not field.multi_valued:
            ids[field.name] = column.to_numpy()
            continue
        values, offsets = _lists(column, pl.Int64)
        weights = () if field.weight_column is None else (_lists(frame[field.weight_column], pl.Float32)[0],)
        ids[field.name] = (values, offsets, *weights)
    for name in schema.dense:
        if not (frame[name].dtype.is_numeric() or frame[name].dtype == pl.Boolean):
            raise InputError(f"{source}: column {name!r} must hold numbers, not {frame[name].dtype}")
    labels = np.zeros((frame.height, len(schema.tasks)), np.float32)
    dense = frame.select(schema.dense).to_numpy() if schema.dense else None
    return Split(schema, ids, labels, dense, np.ones_like(labels), source=source)


def _lists(column: pl.Series, kind: type[pl.DataType]) -> tuple[Array, Array]:
    """As `from_lists`; a column of empty lists alone has no type of values."""
    return from_lists(column.cast(pl.List(kind)) if column.dtype == pl.List(pl.Null) else column)


def as_frame(rows: Rows) -> pl.DataFrame:
    """Returns rows as a frame; raises `InputError` if they are of another kind, or a column mixes types."""
    if isinstance(rows, pl.DataFrame):
        return rows
    if isinstance(rows, (pa.Table, pa.RecordBatch)):
        frame = pl.from_arrow(rows)
        assert isinstance(frame, pl.DataFrame)
        return frame
    if isinstance(rows, Sequence) and all(isinstance(row, Mapping) for row in rows):
        try:
            return pl.DataFrame(list(rows), infer_schema_length=None)
        except (pl.exceptions.PolarsError, TypeError, OverflowError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"`rows` must have values of one type in each column ({reason})") from error
    rule = "must be dictionaries, an Arrow table, a Polars frame or a KeyedJaggedTensor"
    raise InputError(f"`rows` (of type {type(rows).__name__}) {rule}")
