"""The program on late labels: its figures, and that its corrected model is less biased than one that ignores delays."""

import numpy as np
import polars as pl
import pytest

from benchmarks import late_labels
from tests.generators.late_labels import known_at, write_log


def test_figures_by_hand():
    found = late_labels.figures(np.array([0.5, 0.25]), np.array([0.25, 0.25]))
    assert found["bias"] == pytest.approx(-1 / 3)
    assert found["error"] == pytest.approx(1 / 3)
    assert found["excess log loss"] == pytest.approx(500 * (0.5 * np.log(2) + 0.5 * np.log(2 / 3)))


def test_the_log_has_the_rates_that_it_says(tmp_path):
    files = write_log(tmp_path, seed=0, num_days=14, rows_per_day=20_000, drift=0.1)
    final = pl.read_parquet(known_at(files["train"], 21))
    assert final["buy"].mean() == pytest.approx(final["p"].mean(), abs=0.003)
    early = pl.read_parquet(known_at(files["train"], 14))
    assert early["buy"].mean() < 0.9 * final["p"].mean()
    assert early["bought_at"].null_count() == (early["buy"] == 0).sum()


def test_a_corrected_model_is_less_biased_than_one_that_ignores_delays(tmp_path):
    """Over three seeds: one alone is off by up to .05 either way."""
    bias = {"ignoring": 0.0, "corrected": 0.0}
    for seed in range(3):
        (tmp_path / str(seed)).mkdir()
        files = write_log(tmp_path / str(seed), seed, late_labels.DAYS, rows_per_day=4000, drift=0.0)
        for way in bias:
            folder = late_labels.prepare(files, way, tmp_path / str(seed) / way)
            truth = pl.read_parquet(folder / "test.parquet")["p"].to_numpy()
            bias[way] += late_labels.figures(truth, late_labels.train(folder, way, seed).numpy())["bias"] / 3
    assert bias["ignoring"] < -0.08
    assert abs(bias["corrected"]) < 0.05
