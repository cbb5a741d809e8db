"""Logistic regression by scikit-learn and LightGBM: the yardsticks of a comparison, each fitted whole, task by task.

Both see what the models see, ids of fields and dense columns. A logistic regression has a weight for each id and for
each dense column, which is scaled to variance 1; an id of a list counts with its weight. LightGBM has a category for
each field, a list by its first id and its length. They predict p_t = P(y_t = 1 | x) in one of two ways: each task on
all rows, or, *by steps*, each on the rows where its previous step happened, multiplied up the funnel.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from torchrec_mtl.data import Schema, Split, StreamedSplit
from torchrec_mtl.data.lists import Array
from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs.compare.candidates import Candidate, twelve
from torchrec_mtl.jobs.compare.table_rows import Rows, read_rows, rows_of_batch
from torchrec_mtl.jobs.environment import require_extra
from torchrec_mtl.jobs.single_run import EVALUATION_BATCH_SIZE, loader
from torchrec_mtl.metrics import Metric, MultiTaskMetrics
from torchrec_mtl.modules.id_hash import ANY_ID
from torchrec_mtl.tasks import TaskForest
from torchrec_mtl.training.evaluation import Measurements, mean_over_tasks

MOST_ROWS = 2_000_000  # of the training split, drawn evenly where it has more
MOST_TREES, PATIENCE = 2_000, 50


Predict = Callable[[Rows], Array]  # rows -> log-odds [N]
Fit = Callable[[Rows, Rows, int, Mapping[str, Any], int], tuple[Predict, int]]


@dataclass(frozen=True)
class TableModel:
    """A yardstick, in the place of a `torchrec_mtl.systems.System`.

    Args:
        name, title: as of a system.
        fit: ``fit(train, valid, task, arguments, seed)`` fits one task and returns log-odds of rows, and the number of
            its parameters.
        candidates: arguments of ``fit``, ``name=value``, of which validation chooses.
        by_steps: whether a task is fitted on the rows where its previous step happened.
    """

    name: str
    title: str
    fit: Fit
    candidates: tuple[Candidate, ...]
    by_steps: bool = False
    ablation_of: None = None

    @property
    def base(self) -> str:
        """Its name, as it is no ablation."""
        return self.name


@dataclass(frozen=True)
class FitConfig:
    """The settings of one fit, in the place of a `RunConfig`."""

    system: TableModel
    arguments: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    early_stopping_metric: str = "auc"

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.system.name

    def as_dict(self) -> dict[str, Any]:
        """The settings in plain values."""
        return {
            "system": self.name,
            "arguments": dict(self.arguments),
            "seed": self.seed,
            "early_stopping_metric": self.early_stopping_metric,
        }


def fit_config(model: TableModel, candidate: Candidate, seed: int, early_stopping_metric: str) -> FitConfig:
    """The settings of ``model`` with the arguments of a candidate."""
    pairs = (argument.split("=") for argument in candidate)
    return FitConfig(model, {name: float(value) for name, value in pairs}, seed, early_stopping_metric)


def check_data(schema: Schema) -> None:
    """Raises `InputError` unless table models can be fitted: to tasks that are 0 or 1 and fields with a vocabulary."""
    for task in schema.tasks.tasks:
        if not task.is_binary:
            raise InputError(f"a table model has tasks that are 0 or 1, not {task.name}: leave it out of `models`")
    for each in schema.fields:
        if each.num_embeddings == ANY_ID:
            raise InputError(f"a table model has fields with a vocabulary, not {each.name}: leave it out of `models`")


def train(
    config: FitConfig,
    schema: Schema,
    splits: Mapping[str, Split | StreamedSplit],
    metrics: Mapping[str, Metric],
) -> dict[str, Any]:
    """Fits every task and measures validation, and the test split if it is among ``splits``.

    Returns:
        What the result of a run has: measurements, the score that chooses, rows a second, parameters.

    Raises:
        InputError: if a package is missing, or a task has rows of one class alone.
    """
    require_extra("compare", "lightgbm", "sklearn")
    tasks, model = schema.tasks, config.system
    rows, valid = read_rows(splits["train"], schema, MOST_ROWS), read_rows(splits["valid"], schema)
    began, predicts, parameters = time.perf_counter(), [], 0
    for number, task in enumerate(tasks):
        chosen = [each.take(_measured(each, tasks, number, model.by_steps)) for each in (rows, valid)]
        for split, each in zip(("training", "validation"), chosen, strict=True):
            if len(np.unique(each.labels[:, number])) < 2:
                raise InputError(f"{model.title}: the {split} rows of {task} must have both classes")
        predict, size = model.fit(chosen[0], chosen[1], number, config.arguments, config.seed)
        predicts.append(predict)
        parameters += size
    seconds = time.perf_counter() - began
    measured = {
        split: _measure(predicts, splits[split], schema, metrics, model.by_steps)
        for split in ("valid", "test")
        if split in splits
    }
    return {
        "valid": measured["valid"],
        "test": measured.get("test", []),
        "scenes": [],
        "valid_score": mean_over_tasks(measured["valid"], config.early_stopping_metric),
        "best_step": 0,
        "samples_per_second": len(rows.labels) / seconds,
        "num_parameters": parameters,
    }


def _measured(rows: Rows, tasks: TaskForest, task: int, by_steps: bool) -> Array:
    """Which rows a task is fitted on."""
    kept = rows.weights[:, task] > 0
    parent = tasks.parents[task]
    if by_steps and parent is not None:
        kept &= (rows.labels[:, parent] == 1) & (rows.weights[:, parent] > 0)
    return kept


def _measure(
    predicts: Sequence[Predict],
    split: Split | StreamedSplit,
    schema: Schema,
    metrics: Mapping[str, Metric],
    by_steps: bool,
) -> Measurements:
    batches = loader(split, EVALUATION_BATCH_SIZE * 16)
    groups = batches.groups()
    collected = MultiTaskMetrics(schema.tasks, groups is not None, metrics)
    for batch in batches:
        rows = rows_of_batch(batch, schema)
        logits = np.stack([predict(rows) for predict in predicts], axis=1)
        if by_steps:
            logits = _multiplied_up(logits, schema.tasks)
        collected.update(torch.from_numpy(logits).float(), batch.labels, batch.weights, batch.groups)
    return collected.compute()


def _multiplied_up(logits: Array, tasks: TaskForest) -> Array:
    """Log-odds of p_t from those of p(y_t = 1 | its previous step)."""
    log_p = -np.logaddexp(0, -logits)
    for parent, task in tasks.edges:  # a task comes after the one it needs
        log_p[:, task] += log_p[:, parent]
    found: Array = log_p - np.log(-np.expm1(np.minimum(log_p, -1e-12)))
    return found


def _one_hot(rows: Rows, center: Array, scale: Array) -> Any:
    from scipy.sparse import csr_matrix, hstack

    parts, num_rows = [], len(rows.labels)
    for column in rows.columns:
        weights = np.ones(len(column.values)) if column.weights is None else column.weights.astype(float)
        ends = np.concatenate([[0], np.cumsum(column.lengths, dtype=np.int64)])
        parts.append(csr_matrix((weights, column.values, ends), shape=(num_rows, column.field.num_embeddings)))
    if rows.dense.shape[1]:
        parts.append(csr_matrix((rows.dense - center) / scale))
    return hstack(parts, format="csr")


def _fit_logistic_regression(
    train: Rows, valid: Rows, task: int, arguments: Mapping[str, float], seed: int
) -> tuple[Predict, int]:
    """``C`` is the inverse of the L2 penalty; the intercept has none. The seed changes nothing."""
    from sklearn.linear_model import LogisticRegression

    center, scale = train.dense.mean(0), train.dense.std(0)
    scale = np.where(scale > 0, scale, 1)
    model = LogisticRegression(C=arguments["C"], max_iter=1_000)
    model.fit(_one_hot(train, center, scale), train.labels[:, task], sample_weight=train.weights[:, task])

    def predict(rows: Rows) -> Array:
        return np.asarray(model.decision_function(_one_hot(rows, center, scale)))

    return predict, model.coef_.size + 1


def _categories(rows: Rows) -> tuple[Array, list[int]]:
    """A row of numbers for each row, and which of them are categories: -1 stands for a field without id."""
    columns: list[Array] = []
    categories = []
    for column in rows.columns:
        first = np.full(len(column.lengths), -1, np.int32)
        has_id = column.lengths > 0
        starts = np.cumsum(column.lengths, dtype=np.int64) - column.lengths
        first[has_id] = column.values[starts[has_id]]
        categories.append(len(columns))
        columns.append(first)
        if column.field.multi_valued:
            columns.append(column.lengths)
    return np.ascontiguousarray(np.column_stack([*columns, rows.dense]), np.float32), categories


def _fit_light_gbm(
    train: Rows, valid: Rows, task: int, arguments: Mapping[str, float], seed: int
) -> tuple[Predict, int]:
    """Validation AUC chooses the number of trees, as it chooses the step of the other models."""
    import lightgbm

    settings = {"objective": "binary", "metric": "auc", "verbose": -1, "seed": seed, "learning_rate": 0.1}
    settings |= {name: int(value) if value == int(value) else value for name, value in arguments.items()}
    settings["num_threads"] = torch.get_num_threads()

    def columns(rows: Rows) -> dict[str, Any]:
        ids, _ = _categories(rows)
        return {"data": ids, "label": rows.labels[:, task].copy(), "weight": rows.weights[:, task].copy()}

    _, categories = _categories(train)
    data = lightgbm.Dataset(**columns(train), categorical_feature=categories, params=settings)
    stop = lightgbm.early_stopping(PATIENCE, verbose=False)
    model = lightgbm.train(settings, data, MOST_TREES, [data.create_valid(**columns(valid))], callbacks=[stop])

    def predict(rows: Rows) -> Array:
        return np.asarray(model.predict(_categories(rows)[0], raw_score=True))

    return predict, sum(tree["num_leaves"] for tree in model.dump_model()["tree_info"])


_PENALTIES = tuple((f"C={c}",) for c in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0))
_TREES = twelve(  # more leaves, all features and less smoothing were worse
    [("num_leaves=15",), ("num_leaves=31",), ("num_leaves=63",)],
    (("min_data_in_leaf=50",), ("min_data_in_leaf=500",)),
    (("cat_smooth=100",), ("cat_smooth=1000",)),
    (("feature_fraction=0.3",), ("feature_fraction=0.6",)),
)
_REGRESSION = ("logistic_regression", "Logistic regression", _fit_logistic_regression, _PENALTIES)
_LIGHT_GBM = ("lightgbm", "LightGBM", _fit_light_gbm, _TREES)

TABLE_MODELS: Mapping[str, TableModel] = {
    model.name: model
    for model in (
        TableModel(*_REGRESSION),
        TableModel(f"{_REGRESSION[0]}_by_steps", f"{_REGRESSION[1]}, by steps", *_REGRESSION[2:], by_steps=True),
        TableModel(*_LIGHT_GBM),
        TableModel(f"{_LIGHT_GBM[0]}_by_steps", f"{_LIGHT_GBM[1]}, by steps", *_LIGHT_GBM[2:], by_steps=True),
    )
}
