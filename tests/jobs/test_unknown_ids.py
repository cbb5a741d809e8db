"""A run on data with unknown ids: without a row for them it is refused, with one it is as if the data had that row."""

import json
import re
from dataclasses import replace

import polars as pl

from tests.jobs import funnel
from torchrec_mtl.__main__ import main
from torchrec_mtl.data import SPLITS, Schema, build_once

UNKNOWN = {"train": [-1, 10, 11], "valid": [300], "test": [10, 2**40]}  # in the place of item 7


def prepare(folder, unknown_row, unknown):
    """The funnel with unknown ids in place of item 7, or with item 3."""

    def build(made):
        for seed, split in enumerate(SPLITS):
            rows, wrong = funnel.columns(funnel.ROWS[split], seed), UNKNOWN[split] if unknown else [3]
            rows["item"] = [wrong[row % len(wrong)] if item == 7 else item for row, item in enumerate(rows["item"])]
            pl.DataFrame(rows).write_parquet(made / f"{split}.parquet")
        user, item, tags = funnel.SCHEMA.fields
        return replace(funnel.SCHEMA, fields=[user, replace(item, unknown_row=unknown_row), tags])

    return build_once(folder, build)


def results(data, output):
    options = ["--dataset", str(data), "--output", str(output), "--name", "run", "--models", "shared_bottom"]
    assert main(["train", *options, "training.batch_size=512", "training.max_epochs=1", "embedding_dim=4"]) == 0
    rows = json.loads((output / "run" / "results.json").read_text())
    return {(row["task"], row["space"], row["metric"]): row["value"] for row in rows if row["split"] == "test"}


def test_a_run_reports_unknown_ids_and_is_that_on_known_ones(tmp_path, capsys):
    as_known = results(prepare(tmp_path / "known", None, unknown=False), tmp_path / "first")
    assert "are unknown" not in capsys.readouterr().out
    found = results(prepare(tmp_path / "unknown", 3, unknown=True), tmp_path / "second")
    said = capsys.readouterr().out
    assert found == as_known
    for split in SPLITS:
        assert f"{split} split: " in said
    assert " ids of 'item' (" in said
    assert "are unknown, row 3 stands for them" in said
    assert len(re.findall("split: .* are unknown", (tmp_path / "second" / "run" / "table.txt").read_text())) == 3


def test_without_a_row_the_data_is_refused_before_anything_is_written(tmp_path, capsys):
    data = prepare(tmp_path / "data", 3, unknown=True)
    schema = Schema.load(data)
    replace(schema, fields=[replace(field, unknown_row=None) for field in schema.fields]).save(data)
    assert main(["train", "--dataset", str(data), "--output", str(tmp_path / "runs"), "--models", "shared_bottom"]) == 2
    assert "must be at least 0 and below `num_embeddings` (=10)" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
