"""A run with tables in fp16 learns; loaded in fp32, it has the same values, measures the same and is packed exactly."""

import json

import pytest
import torch

from tests.jobs import funnel
from torchrec_mtl.__main__ import main
from torchrec_mtl.inference.package.tables import Ids, TableRows
from torchrec_mtl.jobs.loading import load_run


def test_a_run_learns_and_is_used(tmp_path):
    data = funnel.prepare(tmp_path / "tiny")
    of_tables = ["optimizer=rowwise_adagrad", "learning_rate=0.05", "precision=fp16"]
    options = ["embedding_dim=8", "training.batch_size=100", *(f"training.table.{each}" for each in of_tables)]
    where = ["--dataset", str(data), "--models", "shared_bottom", "--output", str(tmp_path), "--name", "run"]
    assert main(["train", *where, *options]) == 0
    run = load_run(tmp_path / "run")
    weights = [p for name, p in run.train_model.named_parameters() if "embedding_bags" in name]
    assert len(weights) == 3
    for weight in weights:
        assert weight.dtype == torch.float32
        assert weight.half().float().equal(weight)
    figures = tmp_path / "figures.json"
    assert main(["evaluate", str(tmp_path / "run"), "--dataset", str(data), "--output", str(figures)]) == 0
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    measured = {(r["task"], r["space"], r["metric"]): r["value"] for r in rows if r["split"] == "test"}
    again = {(r["task"], r["space"], r["metric"]): r["value"] for r in json.loads(figures.read_text())}
    assert measured["click", "impressions", "auc"] > 0.6
    for key in measured:
        assert again[key] == pytest.approx(measured[key], abs=1e-5), key
    collection = run.model.features.embedding_bag_collection
    packed = TableRows(collection, "fp16")
    ids = Ids(torch.arange(6).repeat(3), torch.arange(19), torch.ones(3, 6, dtype=torch.int64), None)
    for table, values in zip(collection.embedding_bag_configs(), packed(packed.rows, ids), strict=True):
        assert values.equal(collection.embedding_bags[table.name].weight[:6])
