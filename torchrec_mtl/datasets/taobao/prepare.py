"""Prepares TaoBao's display ads from the four raw files.

A row is an impression of ``raw_sample.csv`` with the fields of its ad and of its user, whose profile may be missing.
Prices are bucketed by `log_round`. The first seven of the eight days, in Beijing time, are train, and a tenth of their
rows, drawn by line number and seed, is valid; the eighth day is test. An id is kept if it occurs at least
``min_count`` times in the seven days; missing, rarer and unseen ids share code 0. ``user_id`` is the raw id and groups
rows for GAUC. Rows are sorted by user, and users by a hash: a prefix is a sample of users.

Options add columns from ``behavior_log.csv``. ``history_cate`` and ``history_brand`` are the categories and brands of
the user's last behaviours of any kind strictly before the impression, oldest first. ``purchase`` is 1 if the impression
was clicked and the user bought something of the ad's category and brand within some days. The log does not say which
ad, if any, led to a purchase: a purchase may count for several clicks or be of another product, an ad without a brand
has no purchases, and the windows of late impressions reach beyond the end of the log.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import polars as pl

from torchrec_mtl.argument_types import checked
from torchrec_mtl.data.encoders import ValueCounts, Vocabularies
from torchrec_mtl.data.raw.bad_rows import BadRows
from torchrec_mtl.data.raw.guards import Duplicates, LeakCheck
from torchrec_mtl.data.raw.hashes import is_valid
from torchrec_mtl.data.raw.lines import Progress, map_in_order
from torchrec_mtl.data.raw.preparation import Report, prepare_from_raw, without_progress, write_report
from torchrec_mtl.data.schema import SPLITS, Field, Schema
from torchrec_mtl.data.writer import SplitFiles
from torchrec_mtl.datasets.taobao import features
from torchrec_mtl.datasets.taobao.features import GROUP, HISTORY_FIELDS, SINGLE_FIELDS, Joiner, Partition
from torchrec_mtl.datasets.taobao.findings import describe
from torchrec_mtl.datasets.taobao.sources import TaobaoArguments, read_sources
from torchrec_mtl.datasets.taobao.tables import NUM_DAYS
from torchrec_mtl.tasks import TaskChain

TEST_DAY = NUM_DAYS - 1
NOTES = {
    "source": "Ad Display/Click Data on Taobao.com, tianchi.aliyun.com data set 56",
    "order": "rows are sorted by user and time, users by a hash: a prefix is a sample of users",
    "purchase": "matched by user, category, brand and time; the log does not say which ad led to a purchase",
}


@checked
def prepare_taobao(
    raw: str | Path,
    output: str | Path,
    *,
    history_length: int = 0,
    history_days: int = 7,
    purchase_days: int = 0,
    min_count: int = 1,
    bad_rows: Literal["strict", "quarantine"] = "strict",
    bad_rows_limit: int = 1000,
    sample: float = 1.0,
    seed: int = 0,
    progress: Progress = without_progress,
) -> Path:
    """Prepares TaoBao's display ads in the folder ``output``, unless they are prepared already.

    Besides the files of every prepared data set, the folder has ``vocabularies.parquet``, ``report.json`` (what was
    read, and signs of faulty data) and, if rows were put aside, ``bad_rows.tsv``. The splits also have the columns
    ``time_stamp`` and ``user_id``. An interrupted preparation leaves nothing. It needs some hundred bytes of memory per
    impression and, until it ends, 25 bytes on disk per behaviour within the windows.

    Args:
        raw: folder of the raw files, plain, as .gz or .zst, or in tar archives; the behaviour log may be missing if no
            option needs it.
        output: folder of the prepared data set.
        history_length: largest number of behaviours in a user's history before an impression; 0 for no histories.
        history_days: number of days before the impression that a history covers.
        purchase_days: number of days after a click in which a purchase counts for the task "purchase"; 0 for clicks
            alone.
        min_count: number of times that an id must occur in the first seven days to be kept.
        bad_rows: what happens to a row that breaks the format: "strict" refuses the file, "quarantine" puts the row
            aside in bad_rows.tsv.
        bad_rows_limit: largest number of rows to put aside; one more is an error.
        sample: share of the users to keep, above 0 and at most 1.
        seed: seed that draws the validation rows and the sample.
        progress: function that is called with a stage, the number of rows so far, and the share of the stage that is
            done.

    Returns:
        The path of ``output``.

    Raises:
        InputError: if an argument is wrong, a raw file is missing, damaged or breaks the format, clicks are not rarer
            than other impressions, or ``output`` was prepared with other arguments.

    Example::

        >>> prepare_taobao("raw", "taobao", history_length=-1)
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: `history_length` (=-1) must be at least 0
    """
    arguments = TaobaoArguments(
        raw=str(Path(raw).resolve()),
        history_length=history_length,
        history_days=history_days,
        purchase_days=purchase_days,
        min_count=min_count,
        bad_rows=bad_rows,
        bad_rows_limit=bad_rows_limit,
        sample=float(sample),
        seed=seed,
    )

    def prepare(folder: Path, rows_aside: BadRows) -> Schema:
        return _Preparation(arguments, folder, rows_aside, progress).run()

    return prepare_from_raw(arguments, output, prepare, NOTES)


class _Preparation:
    """One preparation: reads the files, then passes twice over the partitions, to count ids and to write rows."""

    def __init__(self, arguments: TaobaoArguments, folder: Path, bad_rows: BadRows, progress: Progress) -> None:
        self.arguments, self.folder, self.bad_rows, self.progress = arguments, folder, bad_rows, progress
        self.num_threads = os.cpu_count() or 1

    def run(self) -> Schema:
        parts = self.folder / "parts"
        parts.mkdir()
        joiner, figures = read_sources(self.arguments, parts, self.bad_rows, self.progress, self.num_threads)
        vocabularies = self._vocabularies(joiner)
        vocabularies.save(self.folder)
        leaks = LeakCheck({field: vocabularies.num_embeddings(field) for field in SINGLE_FIELDS}, self.arguments.labels)
        figures |= self._write(joiner, vocabularies, leaks, Duplicates(parts / "hashes"))
        shutil.rmtree(parts)
        figures = {"arguments": asdict(self.arguments), **figures}
        write_report(self.folder, figures, self.bad_rows, vocabularies, leaks, describe)
        return Schema(
            "taobao",
            [
                Field(field, vocabularies.num_embeddings(field), multi_valued=field in HISTORY_FIELDS)
                for field in self.arguments.fields
            ],
            TaskChain(self.arguments.labels),
            group=GROUP,
            vocabulary_digest=vocabularies.digest,
        )

    def _partitions(self, joiner: Joiner, stage: str) -> Iterator[Partition]:
        numbers, done = joiner.impressions["partition"].unique().sort().to_list(), 0
        for partition in map_in_order(joiner.join_partition, numbers, self.num_threads):
            done += partition.rows.height
            self.progress(stage, done, done / joiner.impressions.height)
            yield partition

    def _vocabularies(self, joiner: Joiner) -> Vocabularies:
        counts = {field: ValueCounts() for field in self.arguments.fields}
        for partition in self._partitions(joiner, "counting ids"):
            for field, ids in features.train_ids(partition, TEST_DAY - 1).items():
                counts[field].add(ids)
        return Vocabularies({field: counts[field].at_least(self.arguments.min_count) for field in counts})

    def _write(self, joiner: Joiner, vocabularies: Vocabularies, leaks: LeakCheck, duplicates: Duplicates) -> Report:
        """Writes the files of the splits, and returns figures of their rows."""
        positives = {split: dict.fromkeys(self.arguments.labels, 0) for split in SPLITS}
        with SplitFiles(self.folder) as files:
            for partition in self._partitions(joiner, "writing rows"):
                hashes, in_test = features.hash_rows(partition), (partition.rows["day"] == TEST_DAY).to_numpy()
                duplicates.add("train", hashes[~in_test])
                duplicates.add("test", hashes[in_test])
                for name, part in self._splits(features.encode(partition, vocabularies)).items():
                    files.write(name, part)
                    leaks.add(name, part)
                    for label in positives[name]:
                        positives[name][label] += int(part[label].sum())
        files.check_not_empty(self.arguments.raw)
        repeated, common = duplicates.count()
        return {
            "num_rows": files.num_rows,
            "positives": positives,
            "duplicates": {"within the first seven days": repeated, "test rows in them": common},
        }

    def _splits(self, rows: pl.DataFrame) -> dict[str, pl.DataFrame]:
        """Returns the rows of each split, with the columns of its file."""
        in_test = (rows["day"] == TEST_DAY).to_numpy()
        in_valid = ~in_test & is_valid(rows["line"].to_numpy(), self.arguments.seed)
        masks = {"train": ~in_test & ~in_valid, "valid": in_valid, "test": in_test}
        columns = rows.select("time_stamp", GROUP, *self.arguments.labels, *self.arguments.fields)
        return {name: columns.filter(pl.Series(mask)) for name, mask in masks.items()}
