"""Losses and their terms: the papers' formulas in float64, on drawn batches.

Losses do not read values on a device: `torchrec_mtl.data.check_batch` does, before. So a loss of a label of 2 is what
the formula gives for 2, and a loss of what is not finite may be not finite, which the step finds; it is never another
number.
"""

import inspect

import numpy as np
import torch

from tests.fuzz.cases.drawn import floats, forest, labels, one_of, weights
from tests.fuzz.cell import Case
from tests.fuzz.kinds import generator
from tests.support import with_late_labels
from torchrec_mtl import TaskChain, losses

EDGES = ((0, 1), (0, 2))
CHAIN = TaskChain(["click", "cart", "buy"])


def _array(x):
    return None if x is None else x.detach().double().numpy()


def _bce(logits, labels):
    return np.logaddexp(0.0, logits) - labels * logits


def _sigmoid(x):
    return np.exp(-np.logaddexp(0.0, -x))


def _weighted(terms, weights):
    """The mean over rows; 0 of no rows."""
    kept = terms if weights is None else np.where(weights == 0, 0.0, terms * weights)
    return kept.sum() / max(len(terms), 1)


def _of_pairs(weights, edges):
    if weights is None:
        return None
    return weights[:, [child for _, child in edges]] * (weights[:, [parent for parent, _ in edges]] != 0)


def _step(x, edges):
    return x[:, [child for _, child in edges]] - x[:, [parent for parent, _ in edges]]


def _known(labels, weights):
    return labels if weights is None else np.where(weights == 0, 0.0, labels)


def cross_entropy(logits, labels, weights, task_weights=None):
    terms = _bce(logits, _known(labels, weights))
    return _weighted(terms if task_weights is None else terms * task_weights, weights)


def calibrator(logits, edges, weights):
    return _weighted(np.maximum(_step(_sigmoid(logits), edges), 0), _of_pairs(weights, edges))


def dependence(logits, labels, edges, weights):
    terms = (_step(_sigmoid(logits), edges) - _step(_known(labels, weights), edges)) ** 2
    return _weighted(terms, _of_pairs(weights, edges))


def propensity(logits, labels, edges, min_propensity):
    log_does_not = -np.logaddexp(0.0, logits)
    ratio = -np.expm1(-_step(log_does_not, edges))
    happened = labels[:, [child for _, child in edges]]
    return np.where(happened == 1, 1.0, np.clip(ratio, min_propensity, 1.0))


def local_space(logits, labels, propensities, edges, weights):
    labels = _known(labels, weights)
    inside = np.ones_like(logits)
    for place, (parent, child) in enumerate(edges):
        inside[:, child] = labels[:, parent] / propensities[:, place]
    return _weighted(_bce(logits, labels), inside if weights is None else inside * weights)


def assert_formula(found, expected, *inputs):
    """Equal, or not finite where an input is not, or is so large that float32 overflows."""
    found, expected = np.asarray(found, dtype=float), np.asarray(expected, dtype=float)
    if any(x is not None and (~np.isfinite(x)).any() for x in inputs) and not np.isfinite(found).all():
        return
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-6)


def _term(name, formula, draw):
    """A function of tensors, beside its formula of arrays, argument by argument."""

    def judge(given, result):
        arrays = {key: _array(x) if isinstance(x, torch.Tensor) else x for key, x in given.items()}
        with np.errstate(all="ignore"):
            expected = formula(**arrays)
        assert_formula(_array(result), expected, *(x for x in arrays.values() if isinstance(x, np.ndarray)))

    return Case(getattr(losses, name), draw, judge)


def _rows(rng, num_columns=3):
    num_rows = one_of(rng, 1, 2, 5)
    return floats(rng, num_rows, num_columns) * 3, labels(rng, num_rows, CHAIN), weights(rng, num_rows, num_columns)


def _draw(*names, **others):
    def draw(rng):
        logits, happened, of_labels = _rows(rng)
        known = {"logits": logits, "labels": happened, "weights": one_of(rng, of_labels, of_labels, None)}
        known["edges"] = one_of(rng, EDGES, CHAIN.edges)
        known["propensities"] = torch.from_numpy(rng.random((len(logits), 2)) + 0.01).float()
        known["task_weights"] = torch.tensor([1.0, 0.5, 2.0])
        known["min_propensity"] = one_of(rng, 1e-3, 0.2)
        return {name: known[name] for name in names} | others

    return draw


def _risk(*names):
    def draw(rng):
        shape = (one_of(rng, 1, 2, 5), 2)
        known = {
            "errors": torch.from_numpy(rng.exponential(size=shape)).float(),
            "imputed_errors": torch.from_numpy(rng.exponential(size=shape)).float(),
            "observed": torch.from_numpy(rng.integers(0, 2, shape)).float(),
            "propensities": torch.from_numpy(rng.random(shape) + 0.01).float(),
            "weights": one_of(rng, weights(rng, *shape), None),
        }
        return {name: known[name] for name in names}

    return draw


def _ips(errors, observed, propensities, weights):
    return _weighted(observed * errors / propensities, weights)


def _dr(errors, imputed_errors, observed, propensities, weights):
    return _weighted(imputed_errors + observed * (errors - imputed_errors) / propensities, weights)


def _imputation(errors, imputed_errors, observed, propensities, weights):
    return _weighted(observed * (errors - imputed_errors) ** 2 / propensities, weights)


_IMPUTED = ("errors", "imputed_errors", "observed", "propensities", "weights")
CASES = {
    "cross_entropy": _term("cross_entropy", cross_entropy, _draw("logits", "labels", "weights", "task_weights")),
    "calibrator": _term("calibrator", calibrator, _draw("logits", "edges", "weights")),
    "dependence": _term("dependence", dependence, _draw("logits", "labels", "edges", "weights")),
    "step_propensity": _term("step_propensity", propensity, _draw("logits", "labels", "edges", "min_propensity")),
    "local_space_bce": _term(
        "local_space_bce", local_space, _draw("logits", "labels", "propensities", "edges", "weights")
    ),
    "ips_risk": _term("ips_risk", _ips, _risk("errors", "observed", "propensities", "weights")),
    "dr_risk": _term("dr_risk", _dr, _risk(*_IMPUTED)),
    "imputation_loss": _term("imputation_loss", _imputation, _risk(*_IMPUTED)),
}


# the formula of each loss, by its constructor's arguments and its inputs


def _of_loss(name, given, logits, labels, weights, conditional_logits=None, imputed_errors=None):
    tasks, by_task = given["tasks"], given.get("task_weights")
    if name == "LocalSpaceLoss":
        propensities = propensity(logits, labels, tasks.edges, given["min_propensity"])
        return local_space(logits, labels, propensities, tasks.edges, weights)
    if name == "DelayedLoss":
        weights = _importance(logits, labels, tasks) * (1.0 if weights is None else weights)
    entropy = cross_entropy(logits, labels, weights, None if by_task is None else np.asarray(by_task))
    if name in ("CrossEntropyLoss", "DelayedLoss"):
        return entropy
    if name == "CalibratedLoss":
        return entropy + given["alpha"] * calibrator(logits, tasks.edges, weights)
    if name == "DependenceLoss":
        return entropy + given["dependence_weight"] * dependence(logits, labels, tasks.edges, weights)
    return _counterfactual(given, logits, labels, weights, conditional_logits, imputed_errors)


def _importance(logits, labels, tasks):
    weights, p = np.ones_like(logits), _sigmoid(logits)
    late = len(tasks) - 3  # see `with_late_labels`
    weights[:, late] = (1 + p[:, -2]) * np.where(labels[:, late] == 1, 1.0, p[:, -1])
    return weights


def _counterfactual(given, logits, labels, weights, conditional_logits, imputed_errors):
    tasks, weights = given["tasks"], np.ones_like(logits) if weights is None else weights
    labels = _known(labels, weights)
    scales = np.array([1.0 if parent is None else given["global_weight"] for parent in tasks.parents])
    by_task = np.ones(len(tasks)) if given["task_weights"] is None else np.asarray(given["task_weights"])
    risk = _weighted(_bce(logits, labels) * by_task, weights * scales)
    edges = tasks.edges
    pairs = _of_pairs(weights, edges) * by_task[[child for _, child in edges]]
    parents, children = [parent for parent, _ in edges], [child for _, child in edges]
    errors = _bce(conditional_logits[:, children], labels[:, children])
    shares = np.maximum(_sigmoid(logits[:, parents]), given["min_propensity"])
    if imputed_errors is None:
        step = _ips(errors, labels[:, parents], shares, pairs)
    else:
        both = (errors, imputed_errors, labels[:, parents], shares, pairs)
        step = _dr(*both) + _imputation(*both)
    return risk + given["counterfactual_weight"] * step


def _tasks(name, tasks):
    return with_late_labels(tasks) if name == "DelayedLoss" else tasks


def _inputs(rng, tasks):
    num_rows = one_of(rng, 1, 2, 5)
    return {
        "logits": floats(rng, num_rows, len(tasks)) * 3,
        "labels": labels(rng, num_rows, tasks),
        "weights": one_of(rng, weights(rng, num_rows, len(tasks)), None),
        "conditional_logits": floats(rng, num_rows, len(tasks)),
        "imputed_errors": one_of(
            rng, torch.from_numpy(rng.exponential(size=(num_rows, len(tasks.edges)))).float(), None
        ),
    }


def _forward_arguments(loss, inputs):
    return {name: inputs[name] for name in inspect.signature(loss.forward).parameters}


def _judge_loss(name):
    def judge(given, loss):
        for draw in range(2):
            inputs = _forward_arguments(loss, _inputs(generator(name, draw), given["tasks"]))
            arrays = {key: _array(x) for key, x in inputs.items()}
            assert_formula(_array(loss(**inputs)), _of_loss(name, given, **arrays))

    return judge


def _constructor(rng, name):
    tasks = _tasks(name, forest(rng))
    return {
        "tasks": tasks,
        "alpha": float(rng.random()),
        "dependence_weight": float(rng.random()),
        "counterfactual_weight": float(rng.random()),
        "global_weight": float(rng.random()),
        "min_propensity": float(rng.random() * 0.5 + 0.01),
        "joint_imputation": one_of(rng, True, False),
        "task_weights": one_of(rng, None, *[[float(w) for w in rng.random(len(tasks))]] * 2),
    }


def _made(name):
    parameters = inspect.signature(getattr(losses, name)).parameters
    return lambda rng: {key: value for key, value in _constructor(rng, name).items() if key in parameters}


def _forward(name):
    made = getattr(losses, name)
    tasks = _tasks(name, CHAIN)
    loss = made(tasks)
    given = {key: p.default for key, p in inspect.signature(made).parameters.items()} | {"tasks": tasks}

    def judge(inputs, result):
        arrays = {key: _array(x) for key, x in inputs.items()}
        with np.errstate(all="ignore"):
            expected = _of_loss(name, given, **arrays)
        assert_formula(_array(result), expected, *arrays.values())

    return Case(loss.forward, lambda rng: _forward_arguments(loss, _inputs(rng, tasks)), judge)


LOSSES = ("CrossEntropyLoss", "CalibratedLoss", "DependenceLoss", "CounterfactualLoss", "LocalSpaceLoss", "DelayedLoss")
CASES |= {name: Case(getattr(losses, name), _made(name), _judge_loss(name)) for name in LOSSES}
CASES |= {f"{name}.forward": _forward(name) for name in LOSSES}
