"""Quantised tables that TorchRec shards for inference, as far as a CPU can show: the parts are on one device here."""

import copy

import pytest
import torch
from torchrec.distributed.global_settings import set_propogate_device
from torchrec.distributed.quant_embeddingbag import ShardedQuantEmbeddingBagCollection
from torchrec.inference.modules import (
    assign_weights_to_tbe,
    get_table_to_weights_from_tbe,
    quantize_inference_model,
    shard_quant_model,
)

from tests.support import batch, build
from torchrec_mtl.modules import FeatureArch
from torchrec_mtl.systems import SYSTEMS


@pytest.fixture(autouse=True)
def _propagates_devices():
    set_propogate_device(True)
    yield
    set_propogate_device(False)


def feature_archs(model):
    return [module for module in model.modules() if isinstance(module, FeatureArch)]


@pytest.mark.parametrize("name", SYSTEMS)
@torch.no_grad()
def test_a_sharded_quantised_model_scores_as_one_in_one_piece(name):
    torch.manual_seed(0)
    dimension = {"embedding_dim": 4} if SYSTEMS[name].base in ("bpcm", "tafe") else {}
    model = build(name, (4, 8, 4, 4), **dimension).eval()
    for table in (p for path, p in model.named_parameters() if "embedding_bags" in path):
        table.normal_()  # where each task has tables, they differ
    quantised = quantize_inference_model(model)
    sharded, plan = shard_quant_model(
        copy.deepcopy(quantised), world_size=2, compute_device="cpu", sharding_device="cpu"
    )
    for features, whole in zip(feature_archs(sharded), feature_archs(quantised), strict=True):
        # one by one: it goes by the tables' names, and those of two tasks have the same
        assign_weights_to_tbe(features, get_table_to_weights_from_tbe(whole))
    assert any(isinstance(module, ShardedQuantEmbeddingBagCollection) for module in sharded.modules())
    ranks = {rank for tables in plan.plan.values() for table in tables.values() for rank in table.ranks}
    assert ranks == {0, 1}
    for size in (1, 9):
        rows = batch(size)
        found, expected = (each(rows.dense_features, rows.sparse_features) for each in (sharded, quantised))
        torch.testing.assert_close(found, expected)
