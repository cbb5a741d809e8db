"""The code of the page on late conversions runs as it stands."""

import re
from pathlib import Path

import polars as pl

from tests.generators.late_labels import write_log
from torchrec_mtl.data import Schema

PAGE = (Path(__file__).parents[2] / "docs" / "delayed_conversions.md").read_text(encoding="utf-8")


def test_the_page_prepares_a_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = write_log(tmp_path, seed=0, num_days=20, rows_per_day=30, drift=0.0)
    Path(files["train"]).rename("log.parquet")
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    names = {}
    exec(code, names)
    tasks = Schema.load(names["folder"]).tasks
    assert [name for name in tasks if f"`{name}`" in PAGE] == ["buy_delayed", "buy_real_negative"]
    rows = pl.read_parquet(names["folder"] / "train.parquet")
    assert len(rows) > 15 * 30
    assert 0 < (rows["buy_known"] == 1).sum() < len(rows)
