"""One rank looks up at once what TorchRec would, and leaves to TorchRec what it cannot."""

import gc
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torchrec import KeyedJaggedTensor

from tests.support import batch, train_model
from tests.training.pooled import RATE, SIZE, Net, bags, table_batched_modules, tables, train
from tests.training.test_distributed import whole_weights
from torchrec_mtl.modules import FeatureArch
from torchrec_mtl.training.config import TableConfig, TrainingConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.process_group import process_group
from torchrec_mtl.training.sharded_tables import ShardedTables
from torchrec_mtl.training.step import Step
from torchrec_mtl.training.table_gate import TableGate

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("kernel")


@pytest.fixture
def _group() -> Iterator[None]:
    with process_group(CPU):
        yield


def _torchrecs_way(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, ShardedTables):
            assert module._parts
            module._parts = []


@pytest.mark.usefixtures("_group")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("sharding", ["auto", "table_wise"])
def test_one_rank_looks_up_at_once_what_torchrec_would(sharding, mean, weighted):
    """To the last bit, tables of several optimizers and learning rates, which are several groups, included."""
    several = {"t1": {"optimizer": "sgd"}, "t3": {"learning_rate": 0.5}}
    config = TrainingConfig(table=TableConfig("adagrad", RATE, sharding), tables=several)
    at_once, usual = (distribute(Net(tables(mean, is_weighted=weighted)), config, CPU)[0] for _ in range(2))
    _torchrecs_way(usual)
    assert len(table_batched_modules(usual)) == 3
    with torch.no_grad():
        assert at_once(bags(0, weighted=weighted)).equal(usual(bags(0, weighted=weighted)))
    for model in (at_once, usual):
        train(model, range(1, 4), weighted=weighted)
    for name, value in whole_weights(usual).items():
        assert whole_weights(at_once)[name].equal(value)
    features = bags(0, weighted=weighted)
    assert at_once.module.tables(features).keys() == usual.module.tables(features).keys()


@pytest.mark.usefixtures("_group")
def test_a_gate_keeps_the_backward_pass_out():
    model, _ = distribute(Net(tables()), TrainingConfig(table=TableConfig("sgd", RATE)), CPU)
    gate, before = TableGate(model), {name: w.clone() for name, w in whole_weights(model).items()}
    with gate.held():
        loss = model(bags(0)).sum()
    loss.backward()
    assert all(w.equal(before[name]) for name, w in whole_weights(model).items())
    gate.open()
    assert not any(w.equal(before[name]) for name, w in whole_weights(model).items() if ".weight" in name)


@pytest.mark.usefixtures("_group")
def test_a_tracker_of_lookups_is_called():
    model, _ = distribute(Net(tables()), TrainingConfig(table=TableConfig("sgd", RATE)), CPU)
    found: list[KeyedJaggedTensor] = []
    model.module.tables.register_post_lookup_tracker_fn(lambda features, *_: found.append(features))
    at_once = model(bags(0))
    assert len(found) == 1
    model.module.tables.post_lookup_tracker_fn = None
    assert model(bags(0)).equal(at_once)
    assert len(found) == 1


@pytest.mark.usefixtures("_group")
def test_a_key_that_is_missing_is_told_by_torchrec():
    model, _ = distribute(Net(tables()), TrainingConfig(table=TableConfig("sgd", RATE)), CPU)
    features = KeyedJaggedTensor.from_lengths_sync(["f0"], torch.tensor([0]), torch.tensor([1]))
    with pytest.raises(Exception, match="f1"):
        model(features)


@pytest.mark.usefixtures("_group")
@pytest.mark.parametrize("grad", [False, True])
def test_features_read_the_tables_without_a_call_unless_other_code_is_to_run(monkeypatch, grad):
    given = FeatureArch(tables())
    model, _ = distribute(given, TrainingConfig(table=TableConfig("sgd", RATE)), CPU)
    arch, collection, dense = model.module, model.module.embedding_bag_collection, torch.empty(SIZE, 0)
    calls, called = [], ShardedTables.forward
    monkeypatch.setattr(ShardedTables, "forward", lambda *args: calls.append(1) or called(*args))
    with torch.set_grad_enabled(grad):
        at_once = arch(dense, bags(0))
        assert not calls
        assert at_once.requires_grad == grad
        by_call = collection(bags(0)).wait()
        assert torch.cat([by_call[name] for name in arch.embedding_names], 1).equal(at_once)
        calls.clear()
        hook = collection.register_forward_hook(lambda *_: None)
        assert arch(dense, bags(0)).equal(at_once)
        hook.remove()
        assert len(calls) == 1
        collection.forward = lambda features: calls.append(2) or called(collection, features)  # as a pipeline does
        assert arch(dense, bags(0)).equal(at_once)
        assert calls == [1, 2]


def test_a_model_that_took_a_step_can_be_freed():
    with process_group(CPU) as group:
        config = TrainingConfig(table=TableConfig("sgd", RATE))
        model, optimizer = distribute(train_model("shared_bottom"), config, CPU)
        step = Step(model, optimizer, group)
        with step.micro_batch(0, 1):
            step.zero_grad()
            loss, _ = step(batch(8))
            step.backward(loss)
            step.step()
        freed = [weakref.ref(module) for module in model.modules() if isinstance(module, ShardedTables)]
        assert freed
        del model, optimizer, step, loss, _
        gc.collect()
        assert not any(module() for module in freed)
