from pathlib import Path

import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from tests.datasets.taobao.raw import HEADERS
from tests.datasets.taobao.reference import impressions
from tests.generators.taobao import TaobaoGenerator, oracle_auc
from torchrec_mtl.errors import InputError

GENERATOR = TaobaoGenerator(4000, (0.3, 0.1), behaviors_per_row=3, seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return GENERATOR.write(tmp_path_factory.mktemp("raw"))


def test_the_headers_are_the_published_ones(folder: Path) -> None:
    for name, header in HEADERS.items():
        assert (folder / f"{name}.csv").read_text().partition("\n")[0] == header


def test_the_same_seed_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    GENERATOR.write(tmp_path)
    for name in HEADERS:
        assert (tmp_path / f"{name}.csv").read_bytes() == (folder / f"{name}.csv").read_bytes()


def test_files_have_the_labels_of_the_truth(folder: Path) -> None:
    truth, rows = pl.read_parquet(folder / "truth.parquet"), impressions(folder, 0, 1, 1)
    assert truth["click"].to_list() == [row["click"] for row in rows]
    matches = [row["purchase"] for row in rows]
    assert all(matched >= planted for matched, planted in zip(matches, truth["purchase"], strict=True))
    assert truth["purchase"].sum() <= sum(matches) < 1.3 * truth["purchase"].sum()  # noise rarely matches


def test_labels_follow_their_probabilities(folder: Path) -> None:
    truth = pl.read_parquet(folder / "truth.parquet")
    for task in ("click", "purchase"):
        labels, chances = truth[task].to_numpy(), truth[f"p_{task}"].to_numpy()
        deviation = (chances * (1 - chances)).sum() ** 0.5
        assert abs(labels.sum() - chances.sum()) < 4 * deviation
    test = truth.filter(pl.col("time_stamp") >= 1_494_000_000 + 7 * 86_400)
    expected = {task: roc_auc_score(test[task], test[f"p_{task}"]) for task in ("click", "purchase")}
    assert oracle_auc(folder) == pytest.approx(expected)


def test_users_and_ads_follow_a_power_law_and_values_are_missing(folder: Path) -> None:
    samples = pl.read_csv(folder / "raw_sample.csv")
    for column in ("user", "adgroup_id"):
        counts = samples[column].value_counts()["count"].sort(descending=True)
        assert counts[: len(counts) // 10].sum() > 0.25 * len(samples)
    assert pl.read_csv(folder / "user_profile.csv")["pvalue_level"].null_count()
    assert "NULL" in (folder / "ad_feature.csv").read_text()
    users = samples["user"].unique()
    assert 0 < len(users.filter(~users.is_in(pl.read_csv(folder / "user_profile.csv")["userid"].implode()))) < 60


def test_wrong_numbers() -> None:
    with pytest.raises(InputError, match=r"`num_rows` \(=0\) must be at least 1"):
        TaobaoGenerator(0)
