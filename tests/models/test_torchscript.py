"""TorchRec's route to inference: quantise the tables, trace by FX with no module hidden, compile by TorchScript."""

import copy

import pytest
import torch
from torchrec.fx import symbolic_trace
from torchrec.inference.modules import quantize_inference_model

from tests import VERIFY
from tests.support import batch, build
from torchrec_mtl.systems import SYSTEMS


def check(model, leaves):
    expected = copy.deepcopy(model)
    scripted = torch.jit.script(symbolic_trace(model, leaf_modules=leaves))
    for size in (1, 9):
        rows = batch(size)
        with torch.no_grad():
            found = scripted(rows.dense_features, rows.sparse_features)
            torch.testing.assert_close(found, expected(rows.dense_features, rows.sparse_features))


def system(name, **arguments):
    torch.manual_seed(0)
    dimension = {"embedding_dim": 4} if SYSTEMS[name].base in ("bpcm", "tafe") else {}
    return build(name, (4, 8, 4, 4), **dimension, **arguments).eval()


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_quantised_system_becomes_torchscript(name):
    check(quantize_inference_model(system(name)), ["IntNBitTableBatchedEmbeddingBagsCodegen"])


@pytest.mark.parametrize("name", SYSTEMS if VERIFY else ["esmm", "bpcm", "tafe"])
def test_in_fp32_too(name):
    check(system(name), [])


def test_a_selector_for_each_layer_and_the_equations_as_printed():
    check(system("tafe", selector="per_layer", selection="mask"), [])
    check(system("tafe", backend="modules"), [])
