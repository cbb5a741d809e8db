"""PyTorch's dynamic quantisation of linear layers, which swaps each for one whose ``weight`` is a method."""

import copy

import pytest
import torch
from torch import nn
from torch.ao.quantization import quantize_dynamic

from tests.support import batch, build
from torchrec_mtl.systems import SYSTEMS

every_system = pytest.mark.parametrize("name", SYSTEMS)


@pytest.fixture
def model(name):
    torch.manual_seed(0)
    dimension = {"embedding_dim": 4} if SYSTEMS[name].base in ("bpcm", "tafe") else {}
    return build(name, (4, 8, 4, 4), **dimension).eval().requires_grad_(False)


def quantized_logits(model, dtype):
    quantized, rows = quantize_dynamic(model, {nn.Linear}, dtype=dtype), batch(50)
    assert not any(type(module) is nn.Linear for module in quantized.modules())
    return quantized(rows.dense_features, rows.sparse_features)


@every_system
def test_with_float16_the_logits_are_those_of_rounded_weights(name, model):
    rounded, rows = copy.deepcopy(model), batch(50)
    for module in rounded.modules():
        if isinstance(module, nn.Linear):
            module.weight.copy_(module.weight.half())
    expected = rounded(rows.dense_features, rows.sparse_features)
    torch.testing.assert_close(quantized_logits(model, torch.float16), expected, rtol=1e-4, atol=1e-4)


@every_system
def test_with_int8_the_logits_are_nearly_the_same(name, model):
    rows = batch(50)
    expected = model(rows.dense_features, rows.sparse_features)
    error = quantized_logits(model, torch.qint8) - expected
    assert 0 < error.abs().mean() < 0.1 * expected.std()
