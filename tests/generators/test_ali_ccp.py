import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from tests.datasets.ali_ccp import reference
from tests.generators.ali_ccp import AliCcpGenerator, oracle_auc
from torchrec_mtl.datasets import prepare_ali_ccp
from torchrec_mtl.datasets.ali_ccp.layout import FIELDS, RAW_SPLITS
from torchrec_mtl.errors import InputError

NUM_ROWS = {"train": 6000, "test": 3000}
GENERATOR = AliCcpGenerator(
    NUM_ROWS, base_rates=(0.2, 0.05), rows_per_group=20, history_length=5, broken_rate=0.01, first_id=2**31 - 100
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return GENERATOR.write(tmp_path_factory.mktemp("generated"))


def test_every_line_has_the_format(folder: Path) -> None:
    for split in RAW_SPLITS:
        rows = reference.read(folder, split)
        assert len(rows) == NUM_ROWS[split]
        assert {field for line, common in rows for field, *_ in line.features + common.features} == set(FIELDS)
        keys = [line.key for line, _ in rows]
        assert sum(a != b for a, b in pairwise(keys)) + 1 == len(set(keys))  # grouped
        assert len(rows) / len(set(keys)) == pytest.approx(20, rel=0.3)
        ids = [number for line, _ in rows for _, number, _ in line.features]
        assert min(ids) < 2**31 < max(ids)
        assert any(value != 1 for line, _ in rows for field, _, value in line.features if field == "508")


def test_files_have_the_labels_of_the_truth(folder: Path) -> None:
    for split in RAW_SPLITS:
        lines = [line for line, _ in reference.read(folder, split)]
        truth = pl.read_parquet(folder / f"truth_{split}.parquet")
        assert truth["click"].to_list() == [line.click for line in lines]
        assert truth["purchase"].to_list() == [line.purchase for line in lines]
        broken = (truth["purchase"] > truth["click"]).mean()
        assert broken == pytest.approx(0.01, abs=0.006)
        for task, rate in (("click", 0.2), ("purchase", 0.05)):
            assert truth[f"p_{task}"].mean() == pytest.approx(rate, rel=0.15)
            kept = truth.filter(pl.col("purchase") <= pl.col("click"))
            assert kept[task].mean() == pytest.approx(kept[f"p_{task}"].mean(), abs=0.02)


def test_oracle_auc_equals_scikit_learns(folder: Path) -> None:
    truth = pl.read_parquet(folder / "truth_test.parquet").filter(pl.col("purchase") <= pl.col("click"))
    for task, auc in oracle_auc(folder).items():
        assert auc == pytest.approx(roc_auc_score(truth[task], truth[f"p_{task}"]))
        assert 0.7 < auc < 0.95


def test_the_click_rate_falls(tmp_path: Path) -> None:
    folder = AliCcpGenerator({"train": 4000, "test": 4000}, (0.3, 0.1), history_length=1, drift=2.0).write(tmp_path)
    means = [pl.read_parquet(folder / f"truth_{split}.parquet")["p_click"].mean() for split in RAW_SPLITS]
    assert means[0] - means[1] > 0.1


def test_the_prepared_columns_have_the_signal(folder: Path, tmp_path: Path) -> None:
    directory = prepare_ali_ccp(folder, tmp_path / "out", broken_funnel="keep")
    train, test = pl.read_parquet(directory / "train.parquet"), pl.read_parquet(directory / "test.parquet")
    rates = train.group_by("206").agg(rate=pl.col("click").mean())
    scores = test.join(rates, on="206", how="left", maintain_order="left")["rate"].fill_null(0.2)
    assert roc_auc_score(test["click"], scores) > 0.52


def test_the_same_seed_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = GENERATOR.write(tmp_path)
    for file in folder.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_rows": {"train": 5}}, "`num_rows` (={'train': 5}) must give ['train', 'test'] at least 1 row each"),
        ({"rows_per_group": 0}, "`rows_per_group` (=0) must be at least 1"),
        ({"broken_rate": 1.5}, "`broken_rate` (=1.5) must be from 0 to 1"),
    ],
)
def test_wrong_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        AliCcpGenerator(**{"num_rows": NUM_ROWS, **changes})
