"""AITM, against its paper's equations."""

import copy

import pytest
import torch
from torch import nn
from torchrec.inference.modules import quantize_inference_model

from tests.models.test_every_model import check_export, trace
from tests.models.test_torchscript import check as check_torchscript
from tests.modules import parameters
from tests.modules.parameters import assert_close, randn, randomized
from tests.oracles import chains, common
from tests.support import TASKS, batch, chain, tables, take, train_model
from torchrec_mtl.errors import InputError
from torchrec_mtl.models import AITM, AITMArch
from torchrec_mtl.modules import BatchNorm


@pytest.mark.parametrize("num_tasks", [1, 2, 4])
@pytest.mark.parametrize("sizes", [(6,), (7, 5, 4)])
@pytest.mark.parametrize("normalization", ["none", "batch"])
def test_matches_the_equations(num_tasks, sizes, normalization):
    arch = randomized(AITMArch(10, chain(num_tasks), tower_layer_sizes=sizes, normalization=normalization))
    x = randn(4, 10)
    params = {
        "f": [parameters.mlp(network) for network in arch.representations],
        "g": [parameters.mlp(network) for network in arch.information],
        "towers": parameters.towers(arch.towers),
        **(parameters.information_transfer(arch.transfer) if num_tasks > 1 else {}),
    }
    assert_close(arch(x), common.per_sample(chains.aitm, x.numpy(), parameters=params))


def with_pytorchs_norms(arch):
    """A copy in which every `BatchNorm` is PyTorch's; without running variances, of which PyTorch's are others."""
    theirs = copy.deepcopy(arch)
    for layers in (layers for layers in theirs.modules() if isinstance(layers, nn.Sequential)):
        for place, norm in enumerate(layers):
            if isinstance(norm, BatchNorm):
                layers[place] = nn.BatchNorm1d(len(norm.weight), eps=1e-3, dtype=norm.weight.dtype)
                layers[place].load_state_dict(norm.state_dict(), strict=False)
    return theirs


def test_every_layer_of_f_and_g_is_normalised_in_training():
    """Dropout, after the ReLU, would not be the same draw."""
    arch = randomized(AITMArch(10, chain(3), tower_layer_sizes=(7, 5), normalization="batch")).train()
    theirs, x = with_pytorchs_norms(arch), randn(9, 10)
    assert_close(arch(x), theirs(x).detach().numpy())
    ours, others = arch.state_dict(), theirs.state_dict()
    means = [name for name in others if name.endswith("running_mean")]
    assert len(means) == 3 * 2 + 2
    for name in means:
        assert_close(ours[name], others[name].numpy())


def normalized():
    torch.manual_seed(0)
    return train_model("aitm", normalization="batch")


def test_the_normalised_model_is_traced_exported_and_quantised_as_any():
    trained, rows = normalized(), batch(9)
    torch.testing.assert_close(trace(trained)(rows)[0], trained(rows)[0])
    check_torchscript(normalized().model.eval(), [])
    check_export(normalized().model.eval())
    quantized = quantize_inference_model(normalized().model.eval())
    check_torchscript(quantized, ["IntNBitTableBatchedEmbeddingBagsCodegen"])


def test_padding_and_a_row_alone_leave_the_normalised_model_as_it_is():
    """Rows of a batch that are padding change neither loss nor statistics; a row alone trains."""
    trained, rows = normalized(), batch(12)
    other = copy.deepcopy(trained)
    padded, kept = rows.padded(3), take(rows, list(range(9)))
    loss, (_, logits, _) = trained(padded)
    expected, (_, expected_logits, _) = other(kept)
    torch.testing.assert_close(logits[:9], expected_logits)
    torch.testing.assert_close(loss * 12, expected * 9)
    torch.testing.assert_close(trained.state_dict(), other.state_dict())
    before = copy.deepcopy(trained.state_dict())
    loss, _ = trained(take(rows, [0]))
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in trained.parameters() if p.grad is not None)
    torch.testing.assert_close(trained.state_dict(), before, rtol=0, atol=0)


def test_a_batch_that_fails_leaves_no_padding_behind():
    trained, rows = normalized(), batch(12)
    rows.labels = rows.labels[:, :1]
    with pytest.raises(InputError, match="`labels`"):
        trained(rows.padded(3))
    assert {m.num_padded for m in trained.modules() if isinstance(m, BatchNorm)} == {0}


def test_towers_without_a_layer_raise():
    with pytest.raises(InputError, match=r"`tower_layer_sizes` \(=\[\]\) must have at least one"):
        AITM(tables(), TASKS, tower_layer_sizes=())
