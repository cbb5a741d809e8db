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


def of_difference(logits, labels, edges, min_propensity):
    parents, children = logits[:, [parent for parent, _ in edges]], logits[:, [child for _, child in edges]]
    happens, does_not = -np.logaddexp(0.0, -children), -np.logaddexp(0.0, parents)
    return np.where(_step(labels, edges) == 0, np.clip(_sigmoid(happens - does_not), min_propensity, 1.0), 1.0)


def local_dependence(logits, labels, propensities, edges, weights):
    labels = _known(labels, weights)
    terms = (_step(_sigmoid(logits), edges) - _step(labels, edges)) ** 2 * labels[:, [parent for parent, _ in edges]]
    return _weighted(terms / propensities, _of_pairs(weights, edges))


def exit_depth(logits, labels, edges, weights):
    return local_space(logits, labels, np.ones((len(logits), len(edges))), edges, weights)


def focal(logits, labels, gamma, alpha, weights, task_weights):
    labels = _known(labels, weights)
    happens, does_not = np.logaddexp(0.0, -logits), np.logaddexp(0.0, logits)
    terms = labels * alpha * happens * np.exp(-gamma * does_not)
    terms = terms + (1 - labels) * (1 - alpha) * does_not * np.exp(-gamma * happens)
    return _weighted(terms if task_weights is None else terms * task_weights, weights)


def _same(groups):
    return groups[:, None] == groups[None]


def pairwise(logits, labels, groups, weights, task_weights=None):
    labels, weights = _known(labels, weights), np.ones_like(logits) if weights is None else weights
    total, by_task = 0.0, np.ones(logits.shape[1]) if task_weights is None else task_weights
    for t in range(logits.shape[1]):
        w, y = weights[:, t], labels[:, t]
        s = np.where(w == 0, 0.0, logits[:, t])
        sizes = _same(groups) @ w
        terms = _same(groups) * (w * y)[:, None] * (w * (1 - y))[None] * np.logaddexp(0.0, s[None] - s[:, None])
        total += (terms.sum(1) / np.where(sizes == 0, 1, sizes)).sum() * by_task[t]
    return total / max(len(logits), 1)


def listwise(logits, labels, groups, weights, task_weights=None, other_logits=None):
    labels, of_rows = _known(labels, weights), np.ones_like(logits) if weights is None else weights
    f0, terms = np.zeros_like(logits) if other_logits is None else other_logits, np.zeros_like(logits)
    for i in range(len(logits)):
        near = _same(groups)[i]
        for f, share in ((f0 + logits, labels[i]), (f0, 1 - labels[i])):
            known = np.where(of_rows[near] == 0, -np.inf, f[near])
            top = known.max(0)
            mean = np.log((of_rows[near] * np.exp(known - top)).sum(0) / of_rows[near].sum(0)) + top
            terms[i] -= share * (f[i] - mean)
    return _weighted(terms if task_weights is None else terms * task_weights, weights)


def _rounding(name, arrays):
    """Where rows are compared, a large weight times a logarithm that is nearly 0 rounds."""
    weights = arrays.get("weights")
    compares = name in ("pairwise", "listwise", "PairwiseLoss", "JRCLoss")
    return 1e-6 * max(1.0, np.abs(weights).max(initial=1.0)) if compares and weights is not None else 1e-6


def assert_formula(found, expected, *inputs, atol=1e-6):
    """Equal, or not finite where an input is not, or is so large that float32 overflows."""
    found, expected = np.asarray(found, dtype=float), np.asarray(expected, dtype=float)
    if any(x is not None and (~np.isfinite(x)).any() for x in inputs) and not np.isfinite(found).all():
        return
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=atol)


def _term(name, formula, draw):
    """A function of tensors, beside its formula of arrays, argument by argument."""

    def judge(given, result):
        arrays = {key: _array(x) if isinstance(x, torch.Tensor) else x for key, x in given.items()}
        with np.errstate(all="ignore"):
            expected = formula(**arrays)
        inputs = (x for x in arrays.values() if isinstance(x, np.ndarray))
        assert_formula(_array(result), expected, *inputs, atol=_rounding(name, arrays))

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
        known["groups"] = torch.from_numpy(rng.integers(-1, 2, len(logits)))
        known["other_logits"] = one_of(rng, floats(rng, *logits.shape), None)
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
    "difference_propensity": _term(
        "difference_propensity", of_difference, _draw("logits", "labels", "edges", "min_propensity")
    ),
    "local_space_dependence": _term(
        "local_space_dependence", local_dependence, _draw("logits", "labels", "propensities", "edges", "weights")
    ),
    "exit_depth": _term("exit_depth", exit_depth, _draw("logits", "labels", "edges", "weights")),
    "pairwise": _term("pairwise", pairwise, _draw("logits", "labels", "groups", "weights", "task_weights")),
    "listwise": _term(
        "listwise", listwise, _draw("logits", "labels", "groups", "weights", "task_weights", "other_logits")
    ),
    "ips_risk": _term("ips_risk", _ips, _risk("errors", "observed", "propensities", "weights")),
    "dr_risk": _term("dr_risk", _dr, _risk(*_IMPUTED)),
    "imputation_loss": _term("imputation_loss", _imputation, _risk(*_IMPUTED)),
}


# the formula of each loss, by its constructor's arguments and its inputs


def _of_loss(name, given, logits, labels, weights, groups=None, other_logits=None, **of_steps):
    tasks, by_task = given["tasks"], given.get("task_weights")
    if name == "LocalSpaceLoss":
        propensities = propensity(logits, labels, tasks.edges, given["min_propensity"])
        entropy = local_space(logits, labels, propensities, tasks.edges, weights)
        propensities = of_difference(logits, labels, tasks.edges, given["min_propensity"])
        dependent = local_dependence(logits, labels, propensities, tasks.edges, weights)
        return entropy + (given["dependence_weight"] and given["dependence_weight"] * dependent)
    if name == "FocalLoss":
        return focal(logits, labels, given["gamma"], given["alpha"], weights, by_task)
    if name == "LabelSmoothingLoss":
        labels = (1 - given["smoothing"]) * labels + given["smoothing"] / 2
    if name == "DelayedLoss":
        weights = _importance(logits, labels, tasks) * (1.0 if weights is None else weights)
    entropy = cross_entropy(logits, labels, weights, None if by_task is None else np.asarray(by_task))
    if name in ("CrossEntropyLoss", "DelayedLoss", "LabelSmoothingLoss"):
        return entropy
    if name == "PairwiseLoss":
        return entropy + given["pairwise_weight"] * pairwise(logits, labels, groups, weights, by_task)
    if name == "JRCLoss":
        generative = listwise(logits, labels, groups, weights, by_task, other_logits)
        return given["alpha"] * entropy + (1 - given["alpha"]) * generative
    if name == "CalibratedLoss":
        return entropy + given["alpha"] * calibrator(logits, tasks.edges, weights)
    if name == "DependenceLoss":
        return entropy + given["dependence_weight"] * dependence(logits, labels, tasks.edges, weights)
    if name == "ExitDepthLoss":
        return entropy + given["depth_weight"] * exit_depth(
            of_steps["conditional_logits"], labels, tasks.edges, weights
        )
    return _counterfactual(name, given, logits, labels, weights, **of_steps)


def _importance(logits, labels, tasks):
    weights, p = np.ones_like(logits), _sigmoid(logits)
    late = len(tasks) - 3  # see `with_late_labels`
    weights[:, late] = (1 + p[:, -2]) * np.where(labels[:, late] == 1, 1.0, p[:, -1])
    return weights


def _counterfactual(name, given, logits, labels, weights, conditional_logits, **of_steps):
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
    if name != "CounterfactualLoss":
        propensities, (read,) = _sigmoid(logits[:, parents]), of_steps.values()
        rest = np.maximum(1 - propensities, given["min_propensity"])
        steps = labels[:, parents], labels[:, children], conditional_logits[:, children], shares, rest
        return risk + _weighted((_dcmt if name == "DCMTLoss" else _ddpo)(given, *steps, read), pairs)
    imputed_errors = of_steps["imputed_errors"]
    if imputed_errors is None:
        step = _ips(errors, labels[:, parents], shares, pairs)
    else:
        both = (errors, imputed_errors, labels[:, parents], shares, pairs)
        step = _dr(*both) + _imputation(*both)
    return risk + given["counterfactual_weight"] * step


def _dcmt(given, observed, happened, logits, shares, rest, opposite):
    terms = observed * _bce(logits, happened) / shares + (1 - observed) * _bce(opposite, 1 - happened) / rest
    prior = np.abs(1 - _sigmoid(logits) - _sigmoid(opposite))
    return given["counterfactual_weight"] * (terms + given["prior_weight"] * prior)


def _ddpo(given, observed, happened, logits, shares, rest, conversion):
    pseudo = _sigmoid(conversion)
    known = np.where(happened == 1, 1.0, pseudo) if given["soft_labels"] else happened
    direct = observed * _bce(logits, known) / shares + (1 - observed) * _bce(logits, pseudo) / rest
    propensity = given["conversion_weight"] * observed * _bce(conversion, happened)
    return propensity + given["counterfactual_weight"] * direct


def _tasks(name, tasks):
    return with_late_labels(tasks) if name == "DelayedLoss" else tasks


def _inputs(rng, tasks):
    num_rows = one_of(rng, 1, 2, 5)
    return {
        "logits": floats(rng, num_rows, len(tasks)) * 3,
        "labels": labels(rng, num_rows, tasks),
        "weights": one_of(rng, weights(rng, num_rows, len(tasks)), None),
        "conditional_logits": floats(rng, num_rows, len(tasks)),
        "counterfactual_logits": floats(rng, num_rows, len(tasks.edges)),
        "conversion_logits": floats(rng, num_rows, len(tasks.edges)),
        "groups": torch.from_numpy(rng.integers(-1, 2, num_rows)),
        "other_logits": one_of(rng, floats(rng, num_rows, len(tasks)), None),
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
        "alpha": float(rng.random() * 0.9 + 0.05),
        "gamma": float(rng.exponential()),
        "smoothing": float(rng.random() * 0.9),
        "pairwise_weight": float(rng.random()),
        "dependence_weight": float(rng.random()),
        "depth_weight": float(rng.random()),
        "counterfactual_weight": float(rng.random()),
        "global_weight": float(rng.random()),
        "min_propensity": float(rng.random() * 0.5 + 0.01),
        "joint_imputation": one_of(rng, True, False),
        "soft_labels": one_of(rng, True, False),
        "prior_weight": float(rng.random()),
        "conversion_weight": float(rng.random()),
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
        assert_formula(_array(result), expected, *arrays.values(), atol=_rounding(name, arrays))

    return Case(loss.forward, lambda rng: _forward_arguments(loss, _inputs(rng, tasks)), judge)


LOSSES = (
    "CrossEntropyLoss",
    "CalibratedLoss",
    "DependenceLoss",
    "ExitDepthLoss",
    "CounterfactualLoss",
    "LocalSpaceLoss",
    "DelayedLoss",
    "FocalLoss",
    "LabelSmoothingLoss",
    "PairwiseLoss",
    "JRCLoss",
    "DCMTLoss",
    "DDPOLoss",
)
CASES |= {name: Case(getattr(losses, name), _made(name), _judge_loss(name)) for name in LOSSES}
CASES |= {f"{name}.forward": _forward(name) for name in LOSSES}


def _true_logits(loss):
    def judge(inputs, result):
        assert result.shape == inputs["logits"].shape
        assert not result.isnan().any() or inputs["logits"].isnan().any()

    return Case(loss.true_logits, lambda rng: {"logits": floats(rng, 3, 2) * 3}, judge)


CASES |= {
    "FocalLoss.true_logits": _true_logits(losses.FocalLoss(CHAIN)),
    "LabelSmoothingLoss.true_logits": _true_logits(losses.LabelSmoothingLoss(CHAIN)),
}
