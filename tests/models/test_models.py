"""What every model must do, whatever paper it is from."""

import copy
import io

import pytest
import torch
from torch import nn
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor
from torchrec.datasets.utils import Batch
from torchrec.fx import symbolic_trace

from tests.support import MODELS, NUM_EMBEDDINGS, TASKS, batch, build, tables, take, train_model
from torchrec_mtl import TaskChain
from torchrec_mtl.errors import InputError
from torchrec_mtl.models import (
    AITM,
    BPCM,
    ESCM2,
    TAFE,
    AITMArch,
    BPCMArch,
    CrossStitch,
    CrossStitchArch,
    ESCM2Arch,
    ESMMArch,
    MMoEArch,
    OMoEArch,
    PLEArch,
    SharedBottomArch,
    TAFEArch,
)
from torchrec_mtl.modules import DSelectK, FeatureArch

EXPERTS = {"expert_layer_sizes": (8, 6), "tower_layer_sizes": (4,)}
OVER_ARCHS = {
    "shared_bottom": lambda: SharedBottomArch(5 * 4, 3, bottom_layer_sizes=(8,), tower_layer_sizes=(4,)),
    "omoe": lambda: OMoEArch(5 * 4, 3, num_experts=3, **EXPERTS),
    "mmoe": lambda: MMoEArch(5 * 4, 3, num_experts=3, **EXPERTS),
    "mmoe_dselect_k": lambda: MMoEArch(5 * 4, 3, num_experts=3, **EXPERTS, gate=DSelectK()),
    "ple": lambda: PLEArch(5 * 4, 3, num_layers=3, num_task_experts=1, **EXPERTS),
    "cross_stitch": lambda: CrossStitchArch(5 * 4, 3, layer_sizes=(8, 6), tower_layer_sizes=(4,)),
    "esmm": lambda: ESMMArch(5 * 4, TASKS, tower_layer_sizes=(8,)),
    "escm2": lambda: ESCM2Arch(5 * 4, TASKS, tower_layer_sizes=(8,)),
    "aitm": lambda: AITMArch(5 * 4, TASKS, tower_layer_sizes=(8, 6)),
    "bpcm": lambda: BPCMArch(5, 4, TASKS, tower_layer_sizes=(8,)),
    "tafe": lambda: TAFEArch(5, 4, 3, num_layers=2, num_inducing_points=6, tower_layer_sizes=(4,)),
    "tafe_modules": lambda: TAFEArch(5, 4, 3, num_layers=2, num_inducing_points=6, backend="modules", schedule="run"),
}
every_model = pytest.mark.parametrize("name", MODELS)
every_over_arch = pytest.mark.parametrize("name", OVER_ARCHS)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def predict(model, rows):
    return model.eval()(rows.dense_features, rows.sparse_features)


@every_model
@pytest.mark.parametrize("embedding_dims", [(4, 4, 4, 4), (2, 8, 4, 3)], ids=["one_dim", "mixed_dims"])
@pytest.mark.parametrize("size", [1, 9])
def test_logits_are_one_a_task(name, embedding_dims, size):
    model = build(name, embedding_dims, **({"embedding_dim": 4} if name in ("bpcm", "tafe") else {}))
    logits = predict(model, batch(size))
    assert logits.shape == (size, len(TASKS))
    assert logits.isfinite().all()


@every_model
def test_tables_and_tasks_alone_make_a_model(name):
    model = MODELS[name].model(tables(), TASKS, **MODELS[name].model_args)
    rows = batch(5)
    assert model(torch.empty(5, 0), rows.sparse_features).shape == (5, len(TASKS))


@every_model
def test_one_task_is_a_funnel_too(name):
    model = MODELS[name].model(tables(), TaskChain(["click"]), **MODELS[name].model_args)
    assert model(torch.empty(5, 0), batch(5).sparse_features).shape == (5, 1)


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
    """As a sharded collection may return them: in another order."""
    model, rows = build(name), batch(6)
    shuffled = KeyedJaggedTensor.from_jt_dict(dict(reversed(rows.sparse_features.to_dict().items())))
    torch.testing.assert_close(model.eval()(rows.dense_features, shuffled), predict(model, rows))


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


@every_model
def test_fx_traces_down_to_the_over_arch(name):
    """As TorchRec's pipelines trace it: modules without tables are leaves."""
    model, rows = build(name).eval(), batch(6)
    copied = copy.deepcopy(model)
    without_tables = {
        type(module).__name__
        for module in copied.modules()
        if not any(isinstance(m, EmbeddingBagCollection) for m in module.modules())
    }
    traced = symbolic_trace(copied, leaf_modules=["EmbeddingBagCollection", *without_tables])
    torch.testing.assert_close(traced(rows.dense_features, rows.sparse_features), predict(model, rows))


class WithTensors(nn.Module):
    """A model behind plain tensors, as an export needs it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.keys = [f"f{i}" for i in range(len(NUM_EMBEDDINGS))]

    def forward(self, dense_features, values, lengths):
        sparse = KeyedJaggedTensor(keys=self.keys, values=values, lengths=lengths.flatten())
        return self.model(dense_features, sparse)


@every_model
def test_exports_with_a_dynamic_batch(name):
    model = WithTensors(build(name)).eval()

    def arguments(size, seed):
        rows = batch(size, seed)
        sparse = rows.sparse_features
        return rows.dense_features, sparse.values(), sparse.lengths().view(len(NUM_EMBEDDINGS), size)

    size, ids = torch.export.Dim("size", min=1), torch.export.Dim("ids", min=1)
    shapes = ({0: size}, {0: ids}, {1: size})
    exported = torch.export.export(model, arguments(8, 0), dynamic_shapes=shapes, strict=False).module()
    for other in (arguments(8, 1), arguments(3, 2), arguments(50, 3)):
        torch.testing.assert_close(exported(*other), model(*other))


@every_over_arch
@pytest.mark.parametrize("training", [True, False])
def test_over_arch_compiles_without_a_graph_break(name, training):
    arch = OVER_ARCHS[name]().train(training)
    compiled = torch.compile(arch, fullgraph=True, backend="eager")
    for size in (6, 7, 13):
        x = torch.randn(size, 5, 4)
        gradients = []
        for function in (arch, compiled):
            torch.manual_seed(0)  # the same dropout for both
            logits = function(x)
            gradients.append((logits.detach(), *torch.autograd.grad(logits.sum(), arch.parameters())))
        for expected, actual in zip(*gradients, strict=True):
            torch.testing.assert_close(actual, expected)


@every_over_arch
def test_over_arch_takes_fields_or_flattened(name):
    """Alone, as in somebody's own DLRM."""
    arch, x = OVER_ARCHS[name]().eval(), torch.randn(6, 5, 4)
    torch.testing.assert_close(arch(x.flatten(1)), arch(x))


@every_over_arch
def test_over_arch_runs_under_autocast(name):
    arch, x = OVER_ARCHS[name]().eval(), torch.randn(6, 5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        logits = arch(x)
    torch.testing.assert_close(logits.float(), arch(x), rtol=0.1, atol=0.05)


@every_over_arch
def test_over_arch_runs_in_bf16(name):
    arch, x = OVER_ARCHS[name]().eval(), torch.randn(6, 5, 4)
    expected = arch(x)
    torch.testing.assert_close(arch.bfloat16()(x.bfloat16()).float(), expected, rtol=0.1, atol=0.05)


@every_model
def test_torchrecs_own_batch_is_taken(name):
    rows = batch(6)
    own = Batch(rows.dense_features, rows.sparse_features, rows.labels.int())
    loss, (detached, logits, labels) = train_model(name)(own)
    assert loss.requires_grad
    assert not detached.requires_grad
    assert not logits.requires_grad
    assert labels.dtype == torch.float32


@every_model
def test_a_masked_label_changes_nothing(name):
    rows = batch(40, weighted=True)
    trained = train_model(name).eval()
    loss, _ = trained(rows)
    rows.labels = torch.where(rows.weights == 0, 1 - rows.labels, rows.labels)
    torch.testing.assert_close(trained(rows)[0], loss)
    rows.labels = torch.where(rows.weights == 0, torch.nan, rows.labels)
    torch.testing.assert_close(trained(rows)[0], loss)


def test_single_task_shares_nothing():
    model, rows = build("single_task"), batch(32)
    model(rows.dense_features, rows.sparse_features)[:, 0].sum().backward()
    for task in range(len(TASKS)):
        parameters = [*model.features[task].parameters(), *model.over_arch[task].parameters()]
        assert any(p.grad is not None and p.grad.any() for p in parameters) == (task == 0)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: TAFE(tables(), TASKS, num_heads=3), r"`num_heads` \(=3\) must divide `embedding_dim` \(=4\)"),
        (lambda: BPCM(tables(), TASKS, num_heads=0), r"`num_heads` \(=0\) must divide"),
        (lambda: TAFE(tables(), TASKS, num_layers=0), r"`num_layers` \(=0\) must be at least 1"),
        (lambda: TAFE(tables(), TASKS, num_inducing_points=0), r"`num_inducing_points` \(=0\) must be at least 1"),
        (lambda: TAFE(tables(), TASKS, selector_layer_sizes=(4, 0)), r"`selector_layer_sizes` \(=\[4, 0\]\) must be"),
        (lambda: TAFE(tables(), TASKS, backend="c++"), r"`backend` \(='c\+\+'\) must be one of"),
        (lambda: TAFE(tables(), TASKS, selector="per_layer", backend="sdpa"), r"`backend` \(='sdpa'\) needs"),
        (lambda: TAFE(tables(), TASKS, residual="sum"), r"`residual` \(='sum'\) must be"),
        (lambda: TAFE(tables(), TASKS, selector="each"), r"`selector` \(='each'\) must be"),
        (lambda: BPCM(tables(), TASKS, aggregation_over="rows"), r"`aggregation_over` \(='rows'\) must be"),
        (lambda: BPCM(tables(), TASKS, attention=False, aggregation=False), "must keep one of its units"),
        (lambda: TAFE(tables(), TASKS, schedule=(1, -1)), "`schedule`"),
        (lambda: ESCM2(tables(), TASKS, estimator="snips"), r"`estimator` \(='snips'\) must be one of \['ips', 'dr'\]"),
        (lambda: AITM(tables(), TASKS, tower_layer_sizes=()), r"`tower_layer_sizes` \(=\[\]\) must have at least one"),
        (
            lambda: CrossStitch(tables(), TASKS, stitch="unit"),
            r"`stitch` \(='unit'\) must be one of \['channel', 'layer'\]",
        ),
        (lambda: FeatureArch(tables(), dense_in_features=2, dense_arch_layer_sizes=()), "dense_arch_layer_sizes"),
        (lambda: TAFE(tables(()), TASKS), "at least one table"),
    ],
)
def test_a_wrong_argument_is_told(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()
