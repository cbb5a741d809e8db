"""What every model must do, whatever paper it is from."""

import copy
import io

import pytest
import torch
from torch import nn
from torchrec import KeyedJaggedTensor
from torchrec.datasets.utils import Batch
from torchrec.fx import symbolic_trace

from tests.support import MODELS, NUM_EMBEDDINGS, TASKS, batch, build, tables, take, train_model, without_dropout
from torchrec_mtl import TaskChain
from torchrec_mtl.errors import InputError
from torchrec_mtl.modules import Tower

every_model = pytest.mark.parametrize("name", MODELS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def predict(model, rows):
    return model.eval()(rows.dense_features, rows.sparse_features)


@every_model
@pytest.mark.parametrize("embedding_dims", [(4, 4, 4, 4), (2, 8, 4, 3)], ids=["one_dim", "mixed_dims"])
@pytest.mark.parametrize("size", [1, 9])
def test_one_logit_for_each_task(name, embedding_dims, size):
    model = build(name, embedding_dims, **({"embedding_dim": 4} if name in ("bpcm", "tafe") else {}))
    logits = predict(model, batch(size))
    assert logits.shape == (size, len(TASKS))
    assert logits.isfinite().all()


@every_model
def test_tables_and_tasks_are_enough(name):
    model = MODELS[name].model(tables(), TASKS, **MODELS[name].model_args)
    rows = batch(5)
    assert model(torch.empty(5, 0), rows.sparse_features).shape == (5, len(TASKS))


@every_model
def test_a_funnel_may_have_one_task(name):
    model = MODELS[name].model(tables(), TaskChain(["click"]), **MODELS[name].model_args)
    assert model(torch.empty(5, 0), batch(5).sparse_features).shape == (5, 1)


@every_model
def test_starts_from_base_rates(name):
    model, rows, rates = build(name), batch(5), torch.tensor([0.2, 0.03, 0.0004])
    model.start_from_base_rates(rates)
    for tower in (module for module in model.modules() if isinstance(module, Tower)):
        nn.init.zeros_(tower.output.weight)  # leaves the bias
    torch.testing.assert_close(predict(model, rows).sigmoid(), rates.expand(5, 3))


@every_model
def test_every_parameter_gets_a_gradient(name):
    trained = train_model(name, embedding_dims=(4, 8, 4, 4))
    loss, _ = trained(batch(64))
    loss.backward()
    without = [n for n, p in trained.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@every_model
def test_rows_do_not_see_each_other(name):
    """Permuting the batch permutes the logits; a row alone has the logits it has among others."""
    model, rows = build(name).double(), batch(12)
    rows.dense_features = rows.dense_features.double()
    permutation = torch.randperm(12).tolist()
    logits = predict(model, rows)
    torch.testing.assert_close(predict(model, take(rows, permutation)), logits[permutation])
    torch.testing.assert_close(predict(model, take(rows, [7])), logits[[7]])


@every_model
def test_fields_are_taken_by_name(name):
    """A sharded collection may return them in another order."""
    model, rows = build(name), batch(6)
    shuffled = copy.deepcopy(rows)
    shuffled.sparse_features = KeyedJaggedTensor.from_jt_dict(dict(reversed(rows.sparse_features.to_dict().items())))
    torch.testing.assert_close(predict(copy.deepcopy(model), shuffled), predict(model, rows))


@every_model
def test_state_dict_round_trip(name):
    model, rows = build(name), batch(6)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    torch.manual_seed(1)
    other = build(name)
    assert not torch.equal(predict(other, rows), predict(model, rows))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(predict(other, rows), predict(model, rows))


@every_model
def test_meta_construction_allocates_nothing(name):
    model = build(name, device="meta")
    tensors = [*model.named_parameters(), *model.named_buffers()]
    assert [n for n, tensor in tensors if tensor.device.type != "meta"] == []
    shapes = {n: p.shape for n, p in build(name).named_parameters()}
    assert {n: p.shape for n, p in model.named_parameters()} == shapes


def trace(module):
    """A traced copy; the tables are its only leaf."""
    return symbolic_trace(copy.deepcopy(module), leaf_modules=["EmbeddingBagCollection"])


@every_model
def test_fx_traces_down_to_the_over_arch(name):
    model, rows = build(name).eval(), batch(6)
    torch.testing.assert_close(trace(model)(rows.dense_features, rows.sparse_features), predict(model, rows))


@every_model
@pytest.mark.parametrize("weighted", [False, True])
def test_fx_traces_the_train_wrapper(name, weighted):
    trained, rows = without_dropout(train_model(name)), batch(9, weighted=weighted)
    torch.testing.assert_close(trace(trained)(rows), trained(rows))


class WithTensors(nn.Module):
    """A model that takes plain tensors, for an export."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.keys = [f"f{i}" for i in range(len(NUM_EMBEDDINGS))]

    def forward(self, dense_features, values, lengths):
        sparse = KeyedJaggedTensor(keys=self.keys, values=values, lengths=lengths.flatten())
        return self.model(dense_features, sparse)


def check_export(model):
    """With a batch of any size."""
    model = WithTensors(model).eval()

    def arguments(size, seed):
        rows = batch(size, seed)
        sparse = rows.sparse_features
        return rows.dense_features, sparse.values(), sparse.lengths().view(len(NUM_EMBEDDINGS), size)

    size, ids = torch.export.Dim("size", min=1), torch.export.Dim("ids", min=1)
    shapes = ({0: size}, {0: ids}, {1: size})
    exported = torch.export.export(model, arguments(8, 0), dynamic_shapes=shapes, strict=False).module()
    for other in (arguments(8, 1), arguments(3, 2), arguments(50, 3)):
        torch.testing.assert_close(exported(*other), model(*other))


@every_model
def test_exports_with_a_dynamic_batch(name):
    check_export(build(name))


@every_model
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32, torch.float64])
def test_takes_torchrecs_batch(name, dtype):
    """And gives its labels back as they were, as DLRMTrain does."""
    rows = batch(6)
    without_weights = Batch(rows.dense_features, rows.sparse_features, rows.labels.to(dtype))
    loss, (detached, logits, labels) = train_model(name)(without_weights)
    assert loss.requires_grad
    assert not detached.requires_grad
    assert not logits.requires_grad
    assert labels.dtype == dtype
    assert torch.equal(labels, without_weights.labels)


@every_model
def test_one_task_may_have_flat_labels_as_torchrecs_data_sets_give_them(name):
    one = TaskChain(["click"])
    trained, rows = train_model(name, tasks=one).eval(), batch(6, weighted=True)
    rows.labels, rows.weights = rows.labels[:, :1], rows.weights[:, :1]
    expected, (_, expected_logits, _) = trained(rows)
    rows.labels, rows.weights = rows.labels.flatten(), rows.weights.flatten()
    loss, (_, logits, labels) = trained(rows)
    assert torch.equal(loss, expected)
    assert torch.equal(logits, expected_logits.flatten())
    assert labels is rows.labels


@every_model
def test_a_masked_label_changes_nothing(name):
    rows = batch(40, weighted=True)
    trained = train_model(name).eval()
    loss, _ = trained(rows)
    rows.labels = torch.where(rows.weights == 0, 1 - rows.labels, rows.labels)
    torch.testing.assert_close(trained(rows)[0], loss)
    rows.labels = torch.where(rows.weights == 0, torch.nan, rows.labels)
    torch.testing.assert_close(trained(rows)[0], loss)


@every_model
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_may_be_of_another_type(name, dtype):
    """Its batches may stay float32; without dense features, nothing but the tables says the type."""
    rows = batch(8)
    trained = train_model(name).to(dtype)
    loss, (_, logits, _) = trained(rows)
    loss.backward()
    assert logits.dtype == dtype
    assert loss.isfinite()
    model = MODELS[name].model(tables(), TASKS, **MODELS[name].model_args).to(dtype)
    assert model(torch.empty(8, 0), rows.sparse_features).dtype == dtype


@every_model
def test_a_batch_of_no_rows_is_refused(name):
    with pytest.raises(InputError, match="`sparse_features` must have at least one row"):
        train_model(name)(batch(0))
