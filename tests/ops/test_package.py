"""A model in a `torch.package`, with the library's code, beside the library that is installed."""

import io

import pytest
import torch
from torch.package import PackageExporter, PackageImporter

from tests.support import MODELS, batch, build


def packaged(model):
    file = io.BytesIO()
    with PackageExporter(file) as exporter:
        exporter.intern("torchrec_mtl.**")
        exporter.extern("**")
        exporter.save_pickle("model", "model.pkl", model)
    file.seek(0)
    return PackageImporter(file).load_pickle("model", "model.pkl")


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("name", MODELS)
def test_a_package_leaves_the_installed_operations_alone(name):
    torch.manual_seed(0)
    model, rows = build(name).eval(), batch(8)
    expected = model(rows.dense_features, rows.sparse_features)
    for loaded in (packaged(model), packaged(model)):
        assert type(loaded) is not type(model)
        torch.testing.assert_close(loaded(rows.dense_features, rows.sparse_features), expected)
    logits = model(rows.dense_features, rows.sparse_features)
    assert torch.equal(logits, expected)
    logits.sum().backward()
