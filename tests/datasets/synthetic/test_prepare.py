import math
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch
from sklearn.metrics import roc_auc_score

from tests.data.prepared import write
from torchrec_mtl.data import SPLITS, Schema, read_split
from torchrec_mtl.datasets import SyntheticFunnel, oracle_auc, prepare_synthetic
from torchrec_mtl.errors import InputError
from torchrec_mtl.metrics import AUCS, MultiTaskMetrics

FUNNEL = SyntheticFunnel(base_rates=(0.4, 0.2, 0.1), field_sizes=(60, 10, 20), num_pairs=1, list_size=8)
NUM_ROWS = {"train": 300, "valid": 200, "test": 5000}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_synthetic(tmp_path_factory.mktemp("data"), FUNNEL, NUM_ROWS)


def test_it_reads_like_any_prepared_data_set(directory: Path) -> None:
    schema = Schema.load(directory)
    assert schema.num_rows == NUM_ROWS
    assert [field.num_embeddings for field in schema.fields] == [60, 10, 20, 8]
    batch = read_split(directory, "test").batch(torch.arange(NUM_ROWS["test"]))
    assert batch.sparse_features.keys() == ["field_1", "field_2", "field_3", "list"]
    assert batch.labels.mean(0).tolist() == pytest.approx([0.4, 0.2, 0.1], abs=0.04)


def test_splits_are_drawn_independently(directory: Path) -> None:
    splits = [pl.read_parquet(directory / f"{split}.parquet") for split in SPLITS]
    assert not splits[0].head(200).equals(splits[1])
    assert not splits[2].head(200).equals(splits[1])


def test_the_same_arguments_write_the_same_bytes(directory: Path, tmp_path: Path) -> None:
    again = prepare_synthetic(tmp_path, FUNNEL, dict(reversed(NUM_ROWS.items())))
    assert again.name == directory.name
    for file in filter(Path.is_file, directory.iterdir()):
        assert (again / file.name).read_bytes() == file.read_bytes()
    others = [
        prepare_synthetic(tmp_path, FUNNEL, {**NUM_ROWS, "valid": 100}),
        prepare_synthetic(tmp_path, replace(FUNNEL, seed=1), NUM_ROWS),
    ]
    assert len({again, *others}) == 3


def test_oracle_auc_agrees_with_the_metrics(directory: Path) -> None:
    rows = pl.read_parquet(directory / "test.parquet")
    tasks = FUNNEL.schema.tasks
    metrics = MultiTaskMetrics(tasks)
    probabilities = rows.select(f"p_{task}" for task in tasks).to_torch(dtype=pl.Float64)
    metrics.update(probabilities.logit(), rows.select(tasks.names).to_torch(dtype=pl.Float32))
    measured = {(r["task"], r["space"], r["metric"]): r["value"] for r in metrics.compute() if r["metric"] in AUCS}
    assert oracle_auc(directory) == pytest.approx(measured, abs=1e-5)  # the metrics' logits are float32
    clicked = rows.filter(pl.col("step_1") == 1)
    exact = {
        ("step_1", "impressions", "auc"): roc_auc_score(rows["step_1"], rows["p_step_1"]),
        ("step_2", "impressions", "auc"): roc_auc_score(rows["step_2"], rows["p_step_2"]),
        ("step_2", "after step_1", "marginal_auc"): roc_auc_score(clicked["step_2"], clicked["p_step_2"]),
        ("step_2", "after step_1", "conditional_auc"): roc_auc_score(
            clicked["step_2"], clicked["p_step_2"] / clicked["p_step_1"]
        ),
    }
    assert {key: oracle_auc(directory)[key] for key in exact} == pytest.approx(exact, abs=1e-12)


def test_oracle_auc_of_a_single_class_is_nan(tmp_path: Path) -> None:
    directory = prepare_synthetic(
        tmp_path, SyntheticFunnel((1e-9,), (5, 5), num_pairs=1), {"train": 9, "valid": 9, "test": 9}
    )
    assert math.isnan(oracle_auc(directory, "valid")["step_1", "impressions", "auc"])


def test_wrong_arguments(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"`num_rows` \(=\{'train': 5\}\) must give the rows of"):
        prepare_synthetic(tmp_path, FUNNEL, {"train": 5})
    with pytest.raises(InputError, match=r"`num_rows` \(=0\) must be at least 1"):
        prepare_synthetic(tmp_path, FUNNEL, {**NUM_ROWS, "valid": 0})
    assert [path for path in tmp_path.iterdir() if not path.name.startswith(".")] == []
    with pytest.raises(InputError, match=r"schema\.json: no such file"):
        oracle_auc(tmp_path)
    write(tmp_path, "test")
    with pytest.raises(InputError, match=r"test\.parquet: column 'p_click' is missing"):
        oracle_auc(tmp_path)
    with pytest.raises(InputError, match=r"`split` \(='all'\) must be one of"):
        oracle_auc(tmp_path, "all")
