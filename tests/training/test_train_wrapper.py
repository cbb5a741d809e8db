"""A model with its loss, on batches of every shape and type of labels."""

import pytest
import torch
from torchrec.datasets.utils import Batch
from torchrec.fx import symbolic_trace
from torchrec.models.dlrm import DLRM, DLRMTrain

from tests.support import NUM_DENSE, TASKS, batch, offers, tables, three_tasks_for, train_model, without_dropout
from torchrec_mtl import MultiTaskTrain, TaskChain
from torchrec_mtl.errors import InputError
from torchrec_mtl.losses import CrossEntropyLoss
from torchrec_mtl.modules import DSelectK
from torchrec_mtl.systems import LOSSES, SYSTEMS

OPTIONS = {
    "adatt": {"num_shared_experts": 1},
    "home": {"categories": (1, 0, 1), "feature_gate_ranks": (4,)},
    "cross_stitch": {"stitch": "layer"},
    "mmoe": {"gate": DSelectK(per_example=False)},
    "dbmtl": {"num_experts": 3},
    "pepnet": {"domain_fields": ["f1"], "prior_fields": ["f0", "f2"]},
    "bpcm": {"layer_norm": True, "aggregation_over": "fields"},
    "tafe": {"selector": "per_layer", "schedule": "run"},
}
CASES = [*((name, {}) for name in SYSTEMS), *OPTIONS.items(), ("tafe", {"backend": "modules"})]


def traced_equals(trained):
    """The graph of everything but the tables, on batches of another size than it was traced with or without."""
    graph = symbolic_trace(without_dropout(trained), leaf_modules=["EmbeddingBagCollection"])
    graph.graph.lint()
    for rows in (batch(9), batch(4, weighted=True), batch(1)):
        outputs, gradients = [], []
        for model in (graph, trained):
            outputs.append(model(rows))
            model.zero_grad()
            outputs[-1][0].backward()
            gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        torch.testing.assert_close(*outputs)
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=str)
def test_fx_traces_every_system_down_to_its_loss(name, arguments):
    traced_equals(train_model(name, **arguments))


@pytest.mark.parametrize("name", LOSSES)
def test_fx_traces_with_every_loss(name):
    tasks = three_tasks_for(name)
    model = train_model(offers(name), tasks).model
    traced_equals(MultiTaskTrain(model, LOSSES[name](tasks)))


def test_the_groups_of_a_loss_are_the_batchs():
    trained, rows = MultiTaskTrain(train_model("shared_bottom").model, LOSSES["pairwise"](TASKS)), batch(9)
    loss, (_, logits, labels) = trained(rows)
    torch.testing.assert_close(loss.detach(), trained.loss(logits, labels, groups=rows.groups))
    with pytest.raises(InputError, match=r"`groups` of the batch must be given: `loss` \(=PairwiseLoss\) reads it"):
        trained(Batch(rows.dense_features, rows.sparse_features, rows.labels))


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_a_traced_model_reads_labels_of_one_task_in_both_shapes(shape):
    trained, rows = train_model("shared_bottom", tasks=TaskChain(["click"])), batch(6)
    rows.labels = rows.labels[:, 0].reshape(shape)
    graph = symbolic_trace(trained, leaf_modules=["EmbeddingBagCollection"])
    torch.testing.assert_close(graph(rows), trained(rows))


def test_gives_what_dlrm_train_gives():
    """Loss, logits and labels, for TorchRec's labels ``[B]``."""
    model, rows = DLRM(tables(), NUM_DENSE, [6, 4], [8, 1]), batch(9)
    flat = Batch(rows.dense_features, rows.sparse_features, rows.labels[:, 0].int())
    ours = MultiTaskTrain(model, CrossEntropyLoss(TaskChain(["click"])))
    theirs = DLRMTrain(model)
    torch.testing.assert_close(ours(flat), theirs(flat))


@pytest.mark.parametrize("shape", [(6,), (6, 1), (6, 2), (5, 3), (3, 6), (6, 3, 1), (18,)])
@pytest.mark.parametrize("name", ["labels", "weights"])
def test_labels_and_weights_of_another_shape_raise(name, shape):
    rows = batch(6, weighted=True)
    setattr(rows, name, torch.ones(shape))
    with pytest.raises(InputError, match=rf"`{name}` \(of shape .*\) must be \[B, T\], for logits of shape \[6, 3\]"):
        train_model("shared_bottom")(rows)


@pytest.mark.parametrize("shape", [(5,), (1, 6), (6, 2), ()])
def test_labels_of_one_task_of_another_shape_raise(shape):
    rows = batch(6)
    rows.labels = torch.ones(shape)
    with pytest.raises(InputError, match=r"`labels` \(of shape .*\) must be \[B, 1\] or \[B\]"):
        train_model("shared_bottom", tasks=TaskChain(["click"]))(rows)


def test_the_labels_are_the_batchs_own():
    rows = batch(6)
    assert train_model("tafe", tasks=TASKS)(rows)[1][2] is rows.labels
