"""Every model takes a history as one more field: it is traced, exported, sharded and trained as without."""

import itertools

import pytest
import torch
from torch import nn
from torch.export import Dim
from torchrec.fx import symbolic_trace

from tests import VERIFY
from tests.modules.histories import SMALL, feature_arch, history_batch
from tests.support import MODELS, TASKS, without_dropout
from torchrec_mtl import MultiTaskTrain
from torchrec_mtl.inference.package.graph import InferenceGraph, example
from torchrec_mtl.inference.package.load import arguments_of
from torchrec_mtl.training.config import TrainingConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.process_group import process_group

CPU = torch.device("cpu")
EXPORTED = list(itertools.product(MODELS, SMALL)) if VERIFY else [("shared_bottom", "transformer")]
every_model = pytest.mark.parametrize("name", MODELS)
every_kind = pytest.mark.parametrize("kind", SMALL)


def build(name: str, kind: str, device: str | None = None) -> nn.Module:
    torch.manual_seed(0)
    system = MODELS[name]
    return system.model(feature_arch(device, **SMALL[kind]), TASKS, **{**system.small, **system.model_args})


@every_model
@every_kind
def test_traced_and_in_a_graph_it_scores_the_same(name, kind):
    model, rows = without_dropout(build(name, kind)).eval(), history_batch(9)
    with torch.no_grad():
        logits = model(rows.dense_features, rows.sparse_features)
        traced = symbolic_trace(model)(rows.dense_features, rows.sparse_features)
        graph = InferenceGraph(model, TASKS).eval()
        given = arguments_of(rows, graph.keys, False)
        scores = graph(given.dense_features, given.values, given.lengths, None, graph.rows)
    torch.testing.assert_close(traced, logits)
    torch.testing.assert_close(scores, logits.sigmoid())


@every_model
@every_kind
def test_a_step_on_sharded_tables_reaches_every_parameter(name, kind):
    config = TrainingConfig()
    rows, loss_args = history_batch(64), MODELS[name].loss_args
    with process_group(CPU):
        train_model = MultiTaskTrain(build(name, kind, "meta"), MODELS[name].loss(TASKS, **loss_args))
        model, optimizer = distribute(train_model, config, CPU)
        before = {key: value.clone() for key, value in _weights(model).items()}
        loss, _ = model(rows)
        loss.backward()
        of_histories = [p for key, p in model.named_parameters() if "histories.fields" in key]
        assert of_histories
        assert all(p.grad is not None and p.grad.any() for p in of_histories)
        optimizer.step()
        after = _weights(model)
    tables = [key for key in before if ".t_item." in key]
    assert tables
    assert not any(after[key].equal(before[key]) for key in tables)


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    return {key: v.local_shards()[0].tensor if hasattr(v, "local_shards") else v for key, v in state.items()}


@pytest.mark.parametrize(("name", "kind"), EXPORTED)
def test_a_graph_is_exported_for_any_batch_and_any_number_of_ids(name, kind):
    with torch.no_grad():
        graph = InferenceGraph(build(name, kind).eval(), TASKS, "int8").eval()
        size, ids = Dim("batch", min=1, max=2**20), Dim("num_values", min=0, max=2**31)
        rows = [{0: Dim(f"bytes_{n}", min=1, max=2**40)} for n in range(len(graph.rows))]
        program = torch.export.export(
            graph, example(graph, 37), dynamic_shapes=({0: size}, {0: ids}, {1: size}, None, rows), strict=False
        )
        exported = program.module()
        for num_rows in (1, 2, 50):
            given = arguments_of(history_batch(num_rows, seed=num_rows), graph.keys, False)
            arguments = given.dense_features, given.values, given.lengths, None, graph.rows
            torch.testing.assert_close(exported(*arguments), graph(*arguments), atol=1e-5, rtol=1e-5)
        none = given.values[:0], torch.zeros_like(given.lengths)
        arguments = given.dense_features, *none, None, graph.rows
        torch.testing.assert_close(exported(*arguments), graph(*arguments), atol=1e-5, rtol=1e-5)
        assert exported(*arguments).isfinite().all()
