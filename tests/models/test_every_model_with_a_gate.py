"""Every model on features that a domain scales: `FeatureArch` with ``domain_fields``."""

import copy

import pytest
import torch
from torchrec.fx import symbolic_trace

from tests.support import MODELS, NUM_DENSE, TASKS, batch, tables
from torchrec_mtl import MultiTaskTrain
from torchrec_mtl.errors import InputError
from torchrec_mtl.inference.package.graph import InferenceGraph, example
from torchrec_mtl.modules import FeatureArch

DIMS = (4, 8, 4, 4)
every_model = pytest.mark.parametrize("name", MODELS)


def build(name, domain_fields=("f1",), device=None):
    torch.manual_seed(0)
    system, device = MODELS[name], None if device is None else torch.device(device)
    features = FeatureArch(
        tables(DIMS, device),
        dense_in_features=NUM_DENSE,
        dense_arch_layer_sizes=(6, 4),
        domain_fields=domain_fields,
        dense_device=device,
    )
    dimension = {"embedding_dim": 4} if name in ("bpcm", "tafe") else {}
    return system.model(features, TASKS, **{**system.small, **system.model_args, **dimension})


def gates(model):
    return [module.domain_gate for module in model.modules() if isinstance(module, FeatureArch)]


@every_model
def test_a_gate_scales_what_the_model_reads_and_one_at_rest_changes_nothing(name):
    gated, plain, rows = build(name).eval(), build(name, ()).eval(), batch(9)
    plain.load_state_dict(gated.state_dict(), strict=False)
    expected = plain(rows.dense_features, rows.sparse_features)
    assert not torch.allclose(gated(rows.dense_features, rows.sparse_features), expected)
    for gate in gates(gated):
        torch.nn.init.zeros_(gate.unit.output.weight)
        torch.nn.init.zeros_(gate.unit.output.bias)
    torch.testing.assert_close(gated(rows.dense_features, rows.sparse_features), expected)


@every_model
def test_a_gate_is_trained_traced_and_exported(name):
    model, rows = build(name), batch(32)
    trained = MultiTaskTrain(model, MODELS[name].loss(TASKS, **MODELS[name].loss_args))
    loss, _ = trained(rows)
    loss.backward()
    assert [n for n, p in trained.named_parameters() if p.grad is None or not p.grad.any()] == []
    traced = symbolic_trace(copy.deepcopy(model.eval()), leaf_modules=["EmbeddingBagCollection"])
    expected = model(rows.dense_features, rows.sparse_features)
    torch.testing.assert_close(traced(rows.dense_features, rows.sparse_features), expected)
    graph = InferenceGraph(model, TASKS, "fp32").eval()
    dense, values, lengths, weights, tables = example(graph, 32)
    sparse = rows.sparse_features
    found = graph(rows.dense_features, sparse.values(), sparse.lengths().view(lengths.shape), weights, tables)
    torch.testing.assert_close(found, expected.sigmoid())
    assert dense.shape == rows.dense_features.shape
    assert values.dtype == sparse.values().dtype


@every_model
def test_a_gate_may_be_made_on_meta(name):
    model = build(name, device="meta")
    model.to_empty(device="cpu")
    for gate in gates(model):
        for linear in (module for module in gate.modules() if isinstance(module, torch.nn.Linear)):
            torch.nn.init.constant_(linear.weight, torch.nan)
            linear.reset_parameters()
            assert 1 / 2 < linear.weight.var() * linear.in_features / 2 < 2
            assert not linear.bias.any()


def test_a_field_that_the_tables_do_not_have_is_refused():
    with pytest.raises(InputError, match=r"`domain_fields` \(='page'\) must be one of \['f0', 'f1', 'f2', 'f3'\]"):
        build("shared_bottom", ["page"])
