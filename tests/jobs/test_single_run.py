"""What one run reads of its data."""

import dataclasses
from collections import Counter
from typing import ClassVar

import numpy as np
import polars as pl
import pytest
import torch

from tests.jobs import funnel
from torchrec_mtl.data import Split, build_once, load_schema, read_split, stream_split
from torchrec_mtl.jobs.settings import PAPER, make_config
from torchrec_mtl.jobs.single_run import loader, train_model
from torchrec_mtl.systems import SYSTEMS
from torchrec_mtl.training.process_group import process_group

SMALL = ["embedding_dim=4", "training.batch_size=128", "training.max_epochs=1", "training.evaluations_per_epoch=2"]
BATCHES = 12 + 2 * 1  # of 1,500 rows for training, and twice of 300 for validation


class Counted(np.ndarray):
    """A column that counts how often rows are gathered from it."""

    gathered: ClassVar[Counter] = Counter()

    def take(self, *args, **options):
        self.gathered["times"] += 1
        return np.asarray(self).take(*args, **options)


def trained(folder, data, loss, read):
    config = make_config(SYSTEMS["shared_bottom"], PAPER, [*SMALL, f"loss={loss}"])
    schema = load_schema(data)
    splits = {name: read(data, name, schema) for name in ("train", "valid")}
    for split in splits.values():
        if isinstance(split, Split) and "groups" in split.arrays:
            split.arrays = {**split.arrays, "groups": np.array(split.arrays["groups"]).view(Counted)}
    Counted.gathered.clear()
    with process_group(torch.device("cpu")):
        report = train_model(config, schema, splits, torch.device("cpu"), folder)
    return [row["value"] for row in report.result.history], Counted.gathered["times"]


@pytest.fixture(scope="module")
def with_groups(tmp_path_factory):
    return funnel.prepare(tmp_path_factory.mktemp("data") / "with")


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    def build(folder):
        for seed, (split, num_rows) in enumerate(funnel.ROWS.items()):
            pl.DataFrame(funnel.columns(num_rows, seed)).write_parquet(folder / f"{split}.parquet")
        return dataclasses.replace(funnel.SCHEMA, group=None)

    return build_once(tmp_path_factory.mktemp("data") / "without", build)


@pytest.mark.parametrize("read", [read_split, stream_split])
def test_groups_are_gathered_only_for_a_loss_that_reads_them(tmp_path, with_groups, without, read):
    """The metrics have groups of their own; without them a run is the same to the last bit."""
    values, gathered = trained(tmp_path / "with", with_groups, "cross_entropy", read)
    of_others, _ = trained(tmp_path / "without", without, "cross_entropy", read)
    assert gathered == 0
    split = read(with_groups, "train", load_schema(with_groups))
    assert {batch.groups for batch in loader(split, 128, with_groups=False)} == {None}
    np.testing.assert_array_equal(values, of_others)


def test_a_loss_that_reads_groups_gets_those_of_every_batch(tmp_path, with_groups):
    _, gathered = trained(tmp_path, with_groups, "pairwise", read_split)
    assert gathered == BATCHES
