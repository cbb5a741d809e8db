"""A model with its loss, on batches of every shape and type of labels."""

import pytest
import torch
from torchrec.datasets.utils import Batch
from torchrec.models.dlrm import DLRM, DLRMTrain

from tests.support import NUM_DENSE, TASKS, batch, tables, train_model
from torchrec_mtl import MultiTaskTrain, TaskChain
from torchrec_mtl.errors import InputError
from torchrec_mtl.losses import CrossEntropyLoss


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
