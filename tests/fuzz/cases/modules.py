"""The parts of models: outputs of the stated shape, finite; where a part has one number, that number."""

import torch
from torch import nn
from torchrec import EmbeddingBagConfig, EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor

from tests.fuzz.cases.drawn import assert_finite, chain, floats, forest, integer, one_of, sizes, sparse, tables
from tests.fuzz.cell import Case
from tests.fuzz.kinds import generator
from tests.oracles import chains, tafe
from torchrec_mtl import modules
from torchrec_mtl.modules import DSelectK, SmoothStepSchedule, SoftmaxGate

ROWS = 3


def _heads(rng):
    heads = integer(rng, 1, 3)
    return {"embedding_dim": heads * integer(rng, 1, 3), "num_heads": heads}


def schedule(rng):
    return one_of(rng, SmoothStepSchedule(), (2.0, 0.1, 0.5), "run")


def gate(rng, at_most):
    return one_of(rng, SoftmaxGate, DSelectK(num_selected=1), DSelectK(integer(rng, 1, at_most), per_example=False))


def _rows(*shape):
    return torch.randn(ROWS, *shape)


def _module(draw, inputs, shape):
    """A module that maps ``inputs(arguments)`` to finite tensors ``[ROWS, *shape(arguments)]``."""

    def judge(given, module):
        outputs = module(*inputs(given))
        for output in outputs if isinstance(outputs, list) else [outputs]:
            assert_finite(output, ROWS, *shape(given))

    return draw, inputs, judge


def _tower_sizes(rng):
    return {"layer_sizes": sizes(rng), "dropout": one_of(rng, 0.0, 0.5)}


def _features_judge(given, module):
    ids = sparse(generator("rows"), ROWS, ["f0", "f1"])
    outputs = module(torch.randn(ROWS, given["dense_in_features"]), ids)
    assert_finite(outputs, ROWS, sum(module.field_dims))
    assert len(module.field_dims) == 2 + (given["dense_in_features"] > 0)


def _equal(found, expected):
    assert found == expected


def _smooth_step_judge(given, result):
    if torch.as_tensor(given["x"]).isfinite().all():
        expected = tafe.smooth_step(given["x"].double().numpy(), float(given["gamma"]))
        torch.testing.assert_close(result.double(), torch.as_tensor(expected), rtol=1e-4, atol=1e-5)


def _marginal_judge(given, module):
    tasks = given["tasks"]
    logits = torch.randn(ROWS, len(tasks), dtype=torch.float64) * 20
    marginal = module(logits)
    assert_finite(marginal, ROWS, len(tasks))
    for parent, child in tasks.edges:
        assert (marginal[:, child] <= marginal[:, parent] + 1e-9).all()
    if tasks.is_chain:
        expected = torch.tensor([chains.marginal_logits(row) for row in logits.numpy()])
        torch.testing.assert_close(marginal, expected, rtol=1e-9, atol=1e-9)


def _rates_judge(given, result):
    rates, parents = given["base_rates"].double(), given["parents"]
    for task, parent in enumerate(parents):
        expected = rates[task] if parent is None else rates[task] / rates[parent]
        torch.testing.assert_close(result[task].double(), expected, rtol=1e-5, atol=0.0)
        assert 0 < result[task] < 1


def _base_rate_judge(given, tower):
    torch.testing.assert_close(tower.output.bias.sigmoid().item(), given["base_rate"], rtol=1e-5, atol=0.0)


def _tower_at(base_rate):
    tower = modules.Tower(3, [2])
    tower.start_from_base_rate(base_rate)
    return tower


def _towers_at(base_rates):
    towers = modules.TaskTowers(3, 3, [2])
    towers.start_from_base_rates(base_rates)
    return towers


def _towers_judge(given, towers):
    biases = torch.cat([tower.output.bias for tower in towers.towers]).sigmoid()
    torch.testing.assert_close(biases, given["base_rates"], rtol=1e-5, atol=0.0)


def _advanced(num_steps, selector="run"):
    module = modules.DynamicSelector(3, 2, schedule=selector)
    modules.advance_schedules(module, num_steps)
    return module


def _advanced_judge(given, module):
    assert module.step == 1
    start, _, end = SmoothStepSchedule()
    expected = end + (start - end) * (1 - 1 / given["num_steps"])
    torch.testing.assert_close(float(module.gamma()), expected)


def _generator(rng):
    heads = _heads(rng)
    return {
        "num_fields": integer(rng, 1, 4),
        **heads,
        "num_layers": integer(rng, 1, 3),
        "num_inducing_points": integer(rng, 1, 4),
        "selector": one_of(rng, "shared", "per_layer"),
        "selector_layer_sizes": sizes(rng),
        "schedule": schedule(rng),
        "residual": one_of(rng, "input", "query", "none"),
        "selection": one_of(rng, "keys", "mask"),
    }


def _generator_judge(given, module):
    outputs, num_layers = module(*_fields(given)), given["num_layers"]
    for output in outputs[:num_layers]:
        assert_finite(output, ROWS, given["num_inducing_points"], given["embedding_dim"])
    masks = outputs[num_layers:]
    assert len(masks) == (num_layers if given["selection"] == "mask" else 0)
    for mask in masks:
        assert_finite(mask, ROWS, given["num_inducing_points"])


def _extraction(rng):
    given = _generator(rng)
    generator = modules.RepresentationGenerator(**given)
    adapter = modules.TaskAdapter(2, given["embedding_dim"], given["num_layers"], given["num_heads"])
    return {"generator": generator, "adapter": adapter, "backend": one_of(rng, "auto", "modules")}


def _fields(given):
    return [_rows(given["num_fields"], given["embedding_dim"])]


def _initialized(module):
    modules.initialize_linear_layers(module)
    return module


def _tower_features(rng):
    unit = one_of(rng, {"attention": True, "aggregation": True}, {"attention": False, "aggregation": True})
    return {
        "num_fields": integer(rng, 1, 4),
        **_heads(rng),
        "aggregation_over": one_of(rng, "embedding", "fields"),
        "aggregation_size": integer(rng, 1, 5),
        **unit,
        "gate": one_of(rng, True, False),
    }


def _layer_of_experts(rng):
    return {
        "num_tasks": integer(rng, 1, 3),
        "in_features": integer(rng, 1, 5),
        "num_task_experts": integer(rng, 0, 2),
        "num_shared_experts": integer(rng, 1, 2),
        "layer_sizes": sizes(rng, 1),
        "gate": gate(rng, 1),
        "shared_gate": one_of(rng, True, False),
    }


def _fusion_level(rng):
    return {
        "num_tasks": integer(rng, 1, 3),
        "in_features": integer(rng, 1, 5),
        "num_task_experts": integer(rng, 1, 2),
        "num_shared_experts": integer(rng, 0, 2),
        "layer_sizes": sizes(rng, 1),
        "gate": gate(rng, 1),
        "native_experts": one_of(rng, True, False),
        "shared_fusion": one_of(rng, True, False),
    }


def _num_experts(rng, **others):
    return {"num_experts": integer(rng, 2, 5), "in_features": integer(rng, 1, 5), **others}


_PARTS = {
    "Attention": _module(
        lambda rng: {**_heads(rng), "output_projection": one_of(rng, True, False)},
        lambda given: [_rows(2, given["embedding_dim"]), _rows(4, given["embedding_dim"])],
        lambda given: (2, given["embedding_dim"]),
    ),
    "BehaviorPatternConversion": _module(
        lambda rng: {
            **_heads(rng),
            "dropout": 0.3,
            "layer_norm": one_of(rng, True, False),
            "attends_to": one_of(rng, "message", "both"),
        },
        lambda given: [_rows(2, given["embedding_dim"]), _rows(2, given["embedding_dim"])],
        lambda given: (2, given["embedding_dim"]),
    ),
    "ComplementaryGate": _module(
        lambda rng: {"embedding_dim": integer(rng, 1, 5)},
        lambda given: [_rows(2, given["embedding_dim"]), _rows(2, given["embedding_dim"])],
        lambda given: (2, given["embedding_dim"]),
    ),
    "CrossStitchUnit": _module(
        lambda rng: {
            "num_tasks": integer(rng, 1, 4),
            "features": integer(rng, 1, 5),
            "per": one_of(rng, "channel", "layer"),
        },
        lambda given: [_rows(given["num_tasks"], given["features"])],
        lambda given: (given["num_tasks"], given["features"]),
    ),
    "CrossStitchLayer": _module(
        lambda rng: {
            "num_tasks": integer(rng, 1, 4),
            "in_features": integer(rng, 1, 5),
            "out_features": 2 * integer(rng, 1, 3),
            "per": one_of(rng, "channel", "layer"),
            "num_subspaces": integer(rng, 1, 2),
        },
        lambda given: [[_rows(given["in_features"])] * given["num_tasks"]],
        lambda given: (given["out_features"],),
    ),
    "LayerStitchUnit": _module(
        lambda rng: {"num_tasks": integer(rng, 1, 4), "num_layers": integer(rng, 1, 3)},
        lambda given: [[[_rows(5)] * given["num_tasks"]] * given["num_layers"]],
        lambda given: (5,),
    ),
    "MLP": _module(
        lambda rng: {"in_features": integer(rng, 1, 5), "layer_sizes": sizes(rng, 1)},
        lambda given: [_rows(given["in_features"])],
        lambda given: (given["layer_sizes"][-1],),
    ),
    "DSelectGate": _module(
        lambda rng: {
            **_num_experts(rng, num_gates=integer(rng, 1, 3)),
            "num_selected": integer(rng, 1, 2),
            "per_example": one_of(rng, True, False),
            "gamma": one_of(rng, 0.5, 1.0, 6.0),
        },
        lambda given: [_rows(given["in_features"])],
        lambda given: (given["num_gates"], given["num_experts"]),
    ),
    "EmbeddingGate": _module(
        lambda rng: {"field_dims": [2, *sizes(rng)], "domain_fields": [0]},
        lambda given: [_rows(sum(given["field_dims"]))],
        lambda given: (sum(given["field_dims"]),),
    ),
    "GateUnit": _module(
        lambda rng: {name: integer(rng, 1, 5) for name in ("in_features", "hidden_size", "out_features")},
        lambda given: [_rows(given["in_features"])],
        lambda given: (given["out_features"],),
    ),
    "SoftmaxGate": _module(
        lambda rng: _num_experts(rng, num_gates=integer(rng, 1, 3)),
        lambda given: [_rows(given["in_features"])],
        lambda given: (given["num_gates"], given["num_experts"]),
    ),
    "DynamicSelector": _module(
        lambda rng: {
            "in_features": integer(rng, 1, 5),
            "num_inducing_points": integer(rng, 1, 4),
            "layer_sizes": sizes(rng),
            "schedule": schedule(rng),
        },
        lambda given: [_rows(given["in_features"])],
        lambda given: (given["num_inducing_points"],),
    ),
    "Experts": _module(
        lambda rng: _num_experts(rng, layer_sizes=sizes(rng, 1)),
        lambda given: [_rows(given["in_features"])],
        lambda given: (given["num_experts"], given["layer_sizes"][-1]),
    ),
    "MixtureOfExperts": _module(
        lambda rng: _num_experts(rng, layer_sizes=sizes(rng, 1), gate=gate(rng, 2), num_gates=integer(rng, 1, 3)),
        lambda given: [_rows(given["in_features"])],
        lambda given: (given["num_gates"], given["layer_sizes"][-1]),
    ),
    "ExtractionLayer": _module(
        _layer_of_experts,
        lambda given: [[_rows(given["in_features"])] * (given["num_tasks"] + 1)],
        lambda given: (given["layer_sizes"][-1],),
    ),
    "FeatureGate": _module(
        lambda rng: {"in_features": integer(rng, 1, 5), "ranks": sizes(rng, 1)},
        lambda given: [_rows(given["in_features"])],
        lambda given: (given["in_features"],),
    ),
    "NormalizedExperts": _module(
        lambda rng: _num_experts(rng, out_features=integer(rng, 1, 5), ranks=sizes(rng, 1)),
        lambda given: [_rows(given["in_features"])],
        lambda given: (given["num_experts"], given["out_features"]),
    ),
    "SelfGatedMixture": _module(
        lambda rng: _num_experts(rng, num_own=integer(rng, 1, 3)),
        lambda given: [_rows(given["in_features"]), _rows(given["num_experts"], 4), _rows(given["num_own"], 4)],
        lambda given: (4,),
    ),
    "FusionLayer": _module(
        _fusion_level,
        lambda given: [[_rows(given["in_features"])] * (given["num_tasks"] + (given["num_shared_experts"] > 0))],
        lambda given: (given["layer_sizes"][-1],),
    ),
    "FeatureAggregation": _module(
        lambda rng: {
            "num_fields": integer(rng, 1, 4),
            "embedding_dim": integer(rng, 1, 4),
            "hidden_size": integer(rng, 1, 5),
            "over": one_of(rng, "embedding", "fields"),
        },
        _fields,
        lambda given: (given["num_fields"], given["embedding_dim"]),
    ),
    "FeatureTower": _module(_tower_features, _fields, lambda given: (given["num_fields"], given["embedding_dim"])),
    "FieldProjection": _module(
        lambda rng: {"field_dims": sizes(rng, 1), "embedding_dim": integer(rng, 1, 5)},
        lambda given: [_rows(sum(given["field_dims"]))],
        lambda given: (len(given["field_dims"]), given["embedding_dim"]),
    ),
    "InformationTransfer": _module(
        lambda rng: {"features": integer(rng, 1, 5)},
        lambda given: [_rows(given["features"]), _rows(given["features"])],
        lambda given: (given["features"],),
    ),
    "PooledRepresentation": _module(
        lambda rng: {"num_tasks": integer(rng, 1, 4), "masked": one_of(rng, False, True)},
        lambda given: [[_rows(4, 2), *([_rows(4).abs()] if given["masked"] else [])]],
        lambda given: (given["num_tasks"], 2),
    ),
    "RepresentationGenerator": (_generator, _fields, _generator_judge),
    "SelfAttentionStack": _module(
        lambda rng: {**_heads(rng), "num_layers": integer(rng, 1, 3)},
        lambda given: [_rows(4, given["embedding_dim"])],
        lambda given: (4, given["embedding_dim"]),
    ),
    "TaskAdapter": _module(
        lambda rng: {
            "num_tasks": integer(rng, 1, 4),
            **_heads(rng),
            "num_layers": integer(rng, 1, 3),
            "num_indicators": integer(rng, 1, 3),
            "output_projection": one_of(rng, True, False),
        },
        lambda given: [[_rows(4, given["embedding_dim"])] * given["num_layers"]],
        lambda given: (given["num_tasks"] * given["num_indicators"], given["embedding_dim"]),
    ),
    "TaskAwareExtraction": _module(
        _extraction,
        lambda given: [_fields_of(given["generator"])],
        lambda given: (2, given["adapter"].norm_weight.shape[-1]),
    ),
    "Tower": _module(
        lambda rng: {"in_features": integer(rng, 1, 5), **_tower_sizes(rng)},
        lambda given: [_rows(given["in_features"])],
        lambda given: (1,),
    ),
    "TaskFeatureAlignment": _module(
        lambda rng: {"num_fields": integer(rng, 1, 4), **_heads(rng)},
        lambda given: [torch.randn(2, given["embedding_dim"]), _rows(given["num_fields"], given["embedding_dim"])],
        lambda given: (2, given["num_fields"], given["embedding_dim"]),
    ),
    "TaskTowers": _module(
        lambda rng: {"num_tasks": integer(rng, 1, 4), "in_features": integer(rng, 1, 5), **_tower_sizes(rng)},
        lambda given: [[_rows(given["in_features"])] * given["num_tasks"]],
        lambda given: (given["num_tasks"],),
    ),
    "BatchNorm": _module(
        lambda rng: {"features": integer(rng, 1, 5)},
        lambda given: [_rows(given["features"])],
        lambda given: (given["features"],),
    ),
    "hidden_layers": _module(
        lambda rng: {
            "in_features": integer(rng, 1, 5),
            **_tower_sizes(rng),
            "normalization": one_of(rng, "none", "batch"),
        },
        lambda given: [_rows(given["in_features"])],
        lambda given: ([given["in_features"], *given["layer_sizes"]][-1],),
    ),
}


def _fields_of(generator):
    first = next(module for module in generator.selectors[0].modules() if isinstance(module, nn.Linear))
    dim = generator.norm_weight.shape[-1]
    return _rows(first.in_features // dim, dim)


def _table_of_ids():
    return EmbeddingBagConfig(name="t_user", embedding_dim=4, num_embeddings=64, feature_names=["user"])


def _states_judge(given, lstms):
    states = lstms(_rows(1, given["num_steps"], given["in_features"]))
    assert_finite(states, ROWS, given["num_networks"], given["num_steps"], given["hidden_size"])


def _zero_collision_judge(given, collection):
    ids = KeyedJaggedTensor.from_lengths_sync(["user"], torch.tensor([7, 2**62, 0]), torch.tensor([1, 2]))
    assert_finite(collection(ids)[0]["user"], 2, 4)


def _item_table():
    features = ["item", "seen"]
    return EmbeddingCollection(
        tables=[EmbeddingConfig(name="t_item", embedding_dim=4, num_embeddings=9, feature_names=features)]
    )


def _history_sizes(rng):
    return {
        "max_length": integer(rng, 1, 3),
        "transformer_layers": integer(rng, 0, 2),
        "num_heads": one_of(rng, 1, 2),
        "layer_size": integer(rng, 1, 4),
    }


def _history_judge(given, histories):
    ids = KeyedJaggedTensor.from_lengths_sync(
        ["seen", "item"], torch.tensor([7, 2, 8, 1, 4]), torch.tensor([3, 0, 1, 1])
    )
    fields = histories(ids)
    assert_finite(fields, 2, 8)
    assert not fields[1, 4:].any() or given["candidates"] != {"seen": "item"}


CASES = {name: Case(getattr(modules, name), draw, judge) for name, (draw, _, judge) in _PARTS.items()} | {
    "FeatureArch": Case(
        modules.FeatureArch,
        lambda rng: {
            "embedding_bag_collection": tables([integer(rng, 1, 4) for _ in range(2)]),
            "dense_in_features": integer(rng, 0, 3),
            "dense_arch_layer_sizes": sizes(rng, 1),
            "domain_fields": one_of(rng, [], ["f1"]),
            "dense_device": torch.device("cpu"),
            "check_batches": True,
        },
        _features_judge,
    ),
    "TaskRelations": Case(
        modules.TaskRelations,
        lambda rng: {"num_tasks": integer(rng, 1, 4), **_heads(rng)},
        lambda given, relations: assert_finite(relations(), given["num_tasks"], given["embedding_dim"]),
    ),
    "LSTMs": Case(
        modules.LSTMs,
        lambda rng: {
            "num_networks": integer(rng, 1, 3),
            "in_features": integer(rng, 1, 5),
            "hidden_size": integer(rng, 1, 4),
            "num_steps": integer(rng, 1, 4),
        },
        _states_judge,
    ),
    "HistoryArch": Case(
        modules.HistoryArch,
        lambda rng: {
            "embedding_collection": _item_table(),
            "candidates": one_of(rng, {"seen": "item"}, {}),
            "averaged": one_of(rng, [], ["item"]),
            **_history_sizes(rng),
            "dense_device": one_of(rng, None, torch.device("cpu")),
        },
        _history_judge,
    ),
    "HistoryConfig": Case(
        modules.HistoryConfig,
        lambda rng: {"candidates": one_of(rng, {"seen": "item"}, {}), **_history_sizes(rng)},
        lambda given, config: _equal(vars(config), given),
    ),
    "HistoryTransformer": Case(
        modules.HistoryTransformer,
        lambda rng: {**_heads(rng), "num_layers": integer(rng, 1, 2), "max_length": integer(rng, 3, 5)},
        lambda given, module: assert_finite(
            module(torch.randn(3, given["embedding_dim"]), torch.tensor([3, 0])), 3, given["embedding_dim"]
        ),
    ),
    "TargetAttention": Case(
        modules.TargetAttention,
        lambda rng: {
            "embedding_dim": integer(rng, 1, 5),
            "layer_size": integer(rng, 1, 4),
            "softmax": one_of(rng, True, False),
        },
        lambda given, module: assert_finite(
            module(
                torch.randn(3, given["embedding_dim"]), torch.tensor([3, 0]), torch.randn(2, given["embedding_dim"])
            ),
            2,
            given["embedding_dim"],
        ),
    ),
    "ZeroCollisionEmbeddingBagCollection": Case(
        modules.ZeroCollisionEmbeddingBagCollection,
        lambda rng: {
            "tables": [_table_of_ids()],
            "eviction": one_of(rng, "lfu", "lru", "distance_lfu", "none"),
            "interval": integer(rng, 1, 3),
            "buckets": one_of(rng, 1, 4),
            "decay": float(rng.random()),
            "seed": integer(rng, 0, 9),
            "device": one_of(rng, None, torch.device("cpu")),
            "is_weighted": False,
        },
        _zero_collision_judge,
    ),
    "as_features": Case(
        modules.as_features,
        lambda rng: {"features": tables([2, 3])},
        lambda given, result: _features_judge({"dense_in_features": 0}, result),
    ),
    "DSelectK": Case(
        DSelectK,
        lambda rng: {"num_selected": integer(rng, 1, 4), "per_example": True, "gamma": 1.5},
        lambda given, factory: (
            assert_finite(factory(3, 4)(_rows(3)), ROWS, 1, 4) if given["num_selected"] <= 4 else None
        ),
    ),
    "SmoothStepSchedule.over": Case(
        SmoothStepSchedule.over,
        lambda rng: {"num_steps": integer(rng, 1, 1000)},
        lambda given, result: torch.testing.assert_close(result.rate * given["num_steps"], 10.0 - 1e-3),
    ),
    "MarginalFromConditional": Case(
        modules.MarginalFromConditional, lambda rng: {"tasks": one_of(rng, chain(rng), forest(rng))}, _marginal_judge
    ),
    "conditional_rates": Case(
        modules.conditional_rates,
        lambda rng: {"base_rates": torch.tensor([0.5, 0.2, 0.1]), "parents": one_of(rng, (None, 0, 1), (None, 0, 0))},
        _rates_judge,
    ),
    "Tower.start_from_base_rate": Case(_tower_at, lambda rng: {"base_rate": float(rng.random())}, _base_rate_judge),
    "TaskTowers.start_from_base_rates": Case(
        _towers_at, lambda rng: {"base_rates": torch.from_numpy(rng.random(3)).float()}, _towers_judge
    ),
    "smooth_step": Case(
        modules.smooth_step,
        lambda rng: {"x": floats(rng, 4) * 3, "gamma": float(rng.random() + 0.1)},
        _smooth_step_judge,
    ),
    "advance_schedules": Case(_advanced, lambda rng: {"num_steps": integer(rng, 1, 9)}, _advanced_judge),
    "find_schedules": Case(
        modules.find_schedules,
        lambda rng: {"model": nn.Sequential(modules.DynamicSelector(3, 2))},
        lambda given, result: _equal(len(result), 1),
    ),
    "he_normal_": Case(
        lambda weight, bias: (modules.he_normal_(weight, bias), weight, bias)[1:],
        lambda rng: {"weight": floats(rng, 4, 3), "bias": floats(rng, 4)},
        lambda given, result: [assert_finite(x, *x.shape) for x in result],
    ),
    "initialize_linear_layers": Case(
        _initialized,
        lambda rng: {"module": nn.Linear(3, 4)},
        lambda given, result: assert_finite(result.weight, 4, 3),
    ),
}
