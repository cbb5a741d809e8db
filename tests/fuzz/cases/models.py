"""Models and over arches: on drawn batches, the logits of the paper's equations in float64.

Where a model promises it, no task is likelier than the task it needs.
"""

import inspect
from functools import cache

import torch
from torch import nn

from tests.fuzz.cases.drawn import assert_finite, batch, chain, forest, integer, one_of, sizes, tables
from tests.fuzz.cases.modules import gate, schedule
from tests.fuzz.cell import Case
from tests.fuzz.kinds import generator
from tests.fuzz.oracles import logits_of
from torchrec_mtl import TaskChain, models
from torchrec_mtl.modules import FeatureArch

ROWS = 3
FALLS = tuple(getattr(models, f"{name}{arch}") for name in ("ESMM", "ESCM2", "DCMT", "DDPO") for arch in ("", "Arch"))


def _drawn(rng, name):
    """A right value of an argument of a model, by its name; sizes are small."""
    drawn = {
        "embedding_dim": lambda: one_of(rng, 2, 4),
        "num_category_experts": lambda: integer(rng, 1, 2),
        "categories": lambda: None,
        "layer_size": lambda: 2 * integer(rng, 1, 3),
        "hidden_size": lambda: integer(rng, 1, 5),
        "num_subspaces": lambda: integer(rng, 1, 2),
        "num_heads": lambda: one_of(rng, 1, 2),
        "num_layers": lambda: integer(rng, 1, 3),
        "num_experts": lambda: integer(rng, 2, 4),
        "num_task_experts": lambda: integer(rng, 1, 2),
        "num_shared_experts": lambda: integer(rng, 1, 2),
        "num_inducing_points": lambda: integer(rng, 1, 4),
        "num_indicators": lambda: integer(rng, 1, 3),
        "num_fields": lambda: integer(rng, 1, 4),
        "in_features": lambda: integer(rng, 1, 6),
        "num_tasks": lambda: integer(rng, 1, 4),
        "aggregation_size": lambda: one_of(rng, 3, None),
        "aggregation_over": lambda: one_of(rng, "embedding", "fields"),
        "attends_to": lambda: one_of(rng, "message", "both"),
        "message_dropout": lambda: float(rng.random()),
        "dropout": lambda: float(rng.random()),
        "normalization": lambda: one_of(rng, "none", "batch"),
        "stitch": lambda: one_of(rng, "channel", "layer"),
        "estimator": lambda: one_of(rng, "ips", "dr"),
        "selector": lambda: "shared",
        "residual": lambda: one_of(rng, "input", "query", "none"),
        "selection": lambda: one_of(rng, "keys", "mask"),
        "probabilities": lambda: one_of(rng, "marginal", "conditional"),
        "backend": lambda: one_of(rng, "auto", "modules", "reference", "sdpa"),
        "gate": lambda: gate(rng, 2),
        "schedule": lambda: schedule(rng),
        "tasks": lambda: one_of(rng, chain(rng), forest(rng)),
    }
    return drawn[name]() if name in drawn else sizes(rng, 1)


def _arguments(rng, made):
    """Right arguments of a model or over arch, all of them."""
    given = {}
    for name, parameter in inspect.signature(made).parameters.items():
        if name == "features":
            tabled = tables([integer(rng, 1, 4) for _ in range(3)])
            arch = FeatureArch(tabled, dense_in_features=2, dense_arch_layer_sizes=(3,))
            given[name] = one_of(rng, tabled, arch, arch)
        elif isinstance(parameter.default, bool):
            given[name] = one_of(rng, True, parameter.default)
        else:
            given[name] = _drawn(rng, name)
    for name in {"domain_fields", "prior_fields"} & set(given):  # names in a model, positions in an over arch
        last = "f2" if "features" in given else len(given["field_dims"]) - 1
        given[name] = one_of(rng, None, [], [last])
    if {"num_tasks", "tasks"} <= set(given):
        given["num_tasks"] = len(given["tasks"])
    if "num_layers" in given and "num_inducing_points" in given and not given.get("sample_wise", True):
        given["backend"] = "auto"
    return given


def _randomized(module):
    """In float64, away from initial zeros, which could hide a term."""
    with torch.no_grad():
        for parameter in module.double().parameters():
            parameter.normal_(0, 0.5)
    return module.eval()


def _check(given, arch, embeddings, tasks, logits):
    num_tasks = given["num_tasks"] if tasks is None else len(tasks)
    assert_finite(logits, len(embeddings), num_tasks)
    if isinstance(arch, FALLS):
        for parent, child in tasks.edges:
            assert (logits[:, child] <= logits[:, parent] + 1e-9).all(), "a task is likelier than the task it needs"
    if tasks is None or tasks.is_chain:
        expected = logits_of(arch, embeddings, given)
        torch.testing.assert_close(logits.detach(), torch.as_tensor(expected), rtol=1e-6, atol=1e-9)


def _judge_model(given, model):
    tasks = given["tasks"]
    rows = batch(generator(repr(sorted(given))), tasks)
    dense = rows.dense_features if _has_dense(given["features"]) else rows.dense_features[:, :0]
    model = _randomized(model)
    logits = model(dense.double(), rows.sparse_features)
    if isinstance(model, models.SingleTask):
        for task, features in enumerate(model.features):
            embeddings = features(dense.double(), rows.sparse_features)
            of_task = nn.ModuleList([model.over_arch[task]])
            _check({**given, "num_tasks": 1}, of_task, embeddings, None, logits[:, task : task + 1])
        return
    embeddings = model.embed(dense.double(), rows.sparse_features)
    _check(given, model.over_arch, embeddings, tasks, logits)


def _has_dense(features):
    return isinstance(features, FeatureArch) and features.dense_arch is not None


def _width(given):
    if "field_dims" in given:
        return sum(given["field_dims"])
    return given.get("in_features") or given["num_fields"] * given["embedding_dim"]


def _judge_arch(given, arch):
    width = _width(given)
    if isinstance(arch, models.STEMArch):
        width *= given["num_tasks"] + 1
    embeddings = torch.randn(ROWS, width, dtype=torch.float64)
    arch = _randomized(arch)
    _check(given, arch, embeddings, given.get("tasks"), arch(embeddings))


def _case(name):
    made = getattr(models, name)
    judge = _judge_arch if name.endswith("Arch") else _judge_model
    return Case(made, lambda rng: _arguments(rng, made), judge)


MODELS = [name for name in models.__all__ if name != "MultiTaskModel"]


@cache
def _model(name):
    made, rng = getattr(models, name), generator(name)
    given = {**_arguments(rng, made), "tasks": TaskChain(["click", "cart", "purchase"]), "num_tasks": 3}
    return made(**{argument: given[argument] for argument in inspect.signature(made).parameters})


def _started(name):
    def start(base_rates):
        _model(name).start_from_base_rates(base_rates)
        return _model(name)

    return start


def _judge_started(given, model):
    biases = [module.bias for module in model.modules() if isinstance(module, nn.Linear) and module.bias is not None]
    assert all(bias.isfinite().all() for bias in biases)
    rates = given["base_rates"]
    assert rates.shape == (3,)
    assert ((rates > 0) & (rates < 1)).all()


def _falling(rng):
    return {"base_rates": torch.tensor([0.9, 0.6, 0.3]) * float(rng.random() * 0.9 + 0.1)}


CASES = {name: _case(name) for name in MODELS}
CASES |= {f"{name}.start_from_base_rates": Case(_started(name), _falling, _judge_started) for name in MODELS}
