"""Results of one data set are never continued or reported as those of another."""

import json
import re
from pathlib import Path

import polars as pl
import pytest

from tests.jobs import funnel
from torchrec_mtl.__main__ import main
from torchrec_mtl.data import SPLITS, BatchLoader, Schema, read_split
from torchrec_mtl.errors import InputError

OPTIONS = ["--models", "shared_bottom", "training.batch_size=512", "training.max_epochs=1", "embedding_dim=4"]


def other_values(folder: Path, split: str, column: str) -> None:
    """The same rows in number and kind, with the values of one column turned round."""
    file = folder / f"{split}.parquet"
    rows = pl.read_parquet(file)
    rows.with_columns(pl.col(column).reverse()).write_parquet(file)


def train(data: Path, output: Path) -> int:
    return main(["train", "--dataset", str(data), "--output", str(output), "--name", "run", *OPTIONS])


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("column", ["user", "tags", "price"])
def test_every_column_of_every_split_is_in_the_fingerprint(tmp_path, split, column):
    data = funnel.prepare(tmp_path / "tiny")
    before = read_split(data, split).fingerprint
    again = funnel.prepare(tmp_path / "again")
    assert read_split(again, split).fingerprint == before
    other_values(data, split, column)
    assert read_split(data, split).fingerprint != before


@pytest.mark.parametrize("split", SPLITS)
def test_a_run_does_not_go_on_with_other_data_of_as_many_rows(tmp_path, capsys, split):
    data = funnel.prepare(tmp_path / "tiny")
    assert train(data, tmp_path) == 0
    rows = json.loads((tmp_path / "run" / "results.json").read_text())
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert {row["data"] for row in rows} == {config["shared_bottom"]["data"]}
    assert re.fullmatch(r"tiny, 1500 \+ 300 \+ 501 rows, fingerprint [0-9a-f]{16}", rows[0]["data"])
    (tmp_path / "run" / "results.json").unlink()  # as a kill before the last model leaves it
    other_values(data, split, "user")
    capsys.readouterr()
    assert train(data, tmp_path) == 2
    said = capsys.readouterr().err
    assert re.search(r"config\.json: the unfinished run was made with shared_bottom\.data='tiny, .*', now 'tiny", said)


def test_a_saved_position_is_of_the_rows_it_was_saved_on(tmp_path):
    data = funnel.prepare(tmp_path / "tiny")
    state = BatchLoader(read_split(data, "train"), 64).state_dict()
    BatchLoader(read_split(data, "train"), 64).load_state_dict(state)
    other_values(data, "train", "item")
    with pytest.raises(InputError, match=r"`fingerprint` \(=.*\) must be that of the saved position"):
        BatchLoader(read_split(data, "train"), 64).load_state_dict(state)


def test_a_schema_with_other_sizes_is_other_data(tmp_path):
    data = funnel.prepare(tmp_path / "tiny")
    before = read_split(data, "train").fingerprint
    text = (data / "schema.json").read_text()
    (data / "schema.json").write_text(text.replace('"num_embeddings": 20', '"num_embeddings": 21'))
    assert Schema.load(data).fields[0].num_embeddings == 21
    assert read_split(data, "train").fingerprint != before
