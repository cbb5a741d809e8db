"""TaoBao display ads, from the four raw files to a prepared data set.

A row is an impression of ``raw_sample.csv`` with the fields of its ad and of its user, whose profile may be missing.
Prices are bucketed by `log_round`. The first seven of the log's eight days, Beijing time, are train, and a tenth of
their rows, drawn by line number and seed, is valid; the eighth day is test. An id is kept if it occurs in
at least ``min_count`` rows of the seven days; missing, rarer and unseen ones share 0. ``user_id`` is the raw id, which
groups rows for GAUC. Rows lie by user, and users in the order of a hash: a prefix is a sample of users.

Options take columns from ``behavior_log.csv``. ``history_cate`` and ``history_brand`` are the categories and brands of
the user's last behaviours strictly before the impression, whatever their kind, oldest first. ``purchase`` is 1 if the
impression was clicked and the user bought something of the ad's category and brand within some days of it. The log
does not say which ad, if any, a purchase came of: one purchase may be counted for several clicks, one may be of
another product, an ad without a brand has none, and the window of late impressions reaches beyond the log's end.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl

from torchrec_mtl.data.ali_ccp.columns import SingleColumns
from torchrec_mtl.data.ali_ccp.encode import ParquetFiles
from torchrec_mtl.data.ali_ccp.guards import LeakCheck
from torchrec_mtl.data.ali_ccp.impressions import SAMPLE, VALID, uniform
from torchrec_mtl.data.ali_ccp.prepare import VALID_SHARE, silent
from torchrec_mtl.data.ali_ccp.vocabulary import ValueCounts, Vocabularies
from torchrec_mtl.data.publish import build_once
from torchrec_mtl.data.raw.bad_rows import BadRows
from torchrec_mtl.data.raw.blocks import Progress, map_in_order
from torchrec_mtl.data.raw.files import RawFile, find_raw_file
from torchrec_mtl.data.schema import SPLITS, Field, Schema
from torchrec_mtl.data.taobao import features, report
from torchrec_mtl.data.taobao.arguments import Arguments
from torchrec_mtl.data.taobao.behaviors import BehaviorLog
from torchrec_mtl.data.taobao.features import GROUP, HISTORY_FIELDS, SINGLE_FIELDS, Joiner, Partition
from torchrec_mtl.data.taobao.layout import AD_FEATURE, BEHAVIOR_LOG, RAW_SAMPLE, USER_PROFILE
from torchrec_mtl.data.taobao.tables import NUM_DAYS, read_ads, read_impressions, read_profiles
from torchrec_mtl.errors import InputError
from torchrec_mtl.tasks import TaskChain

TEST_DAY = NUM_DAYS - 1
NOTES = {
    "source": "Ad Display/Click Data on Taobao.com, tianchi.aliyun.com data set 56",
    "order": "rows lie by user and time, users in the order of a hash: a prefix is a sample of users",
    "purchase": "matched by user, category, brand and time; the log does not say which ad a purchase came of",
}


def prepare_taobao(
    raw: str | Path,
    output: str | Path,
    *,
    history_length: int = 0,
    history_days: int = 7,
    purchase_days: int = 0,
    min_count: int = 1,
    bad_rows: str = "strict",
    bad_rows_limit: int = 1000,
    sample: float = 1.0,
    seed: int = 0,
    progress: Progress = silent,
) -> Path:
    """The prepared data set ``output``, built first if it is not there yet.

    Beside what every data set has it holds ``vocabularies.parquet``, ``report.json`` (what was read, and what the
    guards found) and, if rows were put aside, ``bad_rows.tsv``; its splits have ``time_stamp`` and ``user_id``. An
    interrupted preparation leaves nothing. It needs some hundred bytes of memory an impression, and 25 on disk, for the
    time being, for each behaviour within the windows.

    Args:
        raw: folder of the raw files, plain, as .gz or .zst, or in tar archives; the behaviour log may be missing where
            no option needs it.
        output: the data set's own folder.
        history_length: behaviours of a history, at most; 0 for no histories.
        history_days: how long before the impression they may be.
        purchase_days: how long after the impression a purchase may be, for the task "purchase"; 0 for clicks alone.
        min_count: rows of the seven days that an id must occur in.
        bad_rows: "strict" refuses a file with a bad row, "quarantine" puts such rows aside.
        bad_rows_limit: how many may be put aside.
        sample: share of the users to keep, above 0 and at most 1.
        seed: of the rows in valid and of the sample.
        progress: called with a stage, the rows read, and the share of the stage that is done.

    Returns:
        ``output`` as a path.

    Raises:
        InputError: if an argument is wrong, a raw file is missing, damaged or breaks the format, clicks are not rarer
            than other impressions, or ``output`` was prepared with other arguments.

    Example::

        >>> prepare_taobao("raw", "taobao", history_length=-1)
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: `history_length` (=-1) must be at least 0
    """
    arguments = Arguments(
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

    def build(folder: Path) -> Schema:
        with BadRows(bad_rows, bad_rows_limit, folder) as rows_aside:
            return _Preparation(arguments, folder, rows_aside, progress).run()

    directory = build_once(output, build)
    told = Schema.load(directory).notes.get("preparation")
    if told != str(arguments):
        raise InputError(f"`output` (={str(output)!r}) must be a new folder: it was prepared with {told}")
    return directory


class _Preparation:
    """One run: reads the files, then goes twice over the partitions, to count ids and to write rows."""

    def __init__(self, arguments: Arguments, folder: Path, bad_rows: BadRows, progress: Progress) -> None:
        self.arguments, self.folder, self.bad_rows, self.progress = arguments, folder, bad_rows, progress
        self.num_threads = os.cpu_count() or 1

    def run(self) -> Schema:
        joiner, found = self._read()
        vocabularies = self._vocabularies(joiner)
        vocabularies.save(self.folder)
        found |= self._write(joiner, vocabularies)
        shutil.rmtree(self.folder / "behaviors", ignore_errors=True)
        report.write(self.folder, asdict(self.arguments), found, vocabularies, self.bad_rows)
        return Schema(
            "taobao",
            [
                Field(field, vocabularies.num_embeddings(field), multi_valued=field in HISTORY_FIELDS)
                for field in self.arguments.fields
            ],
            TaskChain(self.arguments.labels),
            group=GROUP,
            notes={**NOTES, "preparation": str(self.arguments)},
            vocabulary_digest=vocabularies.digest,
        )

    def _read(self) -> tuple[Joiner, report.Found]:
        """The raw files, the behaviour log where it is needed."""
        windows, how = self.arguments.windows, (self.bad_rows, self.progress, self.num_threads)
        formats = [AD_FEATURE, USER_PROFILE, RAW_SAMPLE, *([BEHAVIOR_LOG] if windows.needs_log else [])]
        files = [find_raw_file(self.arguments.raw, layout.name) for layout in formats]
        ads, profiles = read_ads(files[0], *how), read_profiles(files[1], *how)
        impressions = read_impressions(files[2], ads, *how)
        found = report.found_in(ads, profiles, impressions)
        self._check_clicks(files[2], found)
        if self.arguments.sample < 1:
            users = impressions["user"].to_numpy()
            kept = uniform(users, self.arguments.seed, SAMPLE) < self.arguments.sample
            impressions = impressions.filter(pl.Series(kept))
            if impressions.is_empty():
                raise InputError(f"`sample` (={self.arguments.sample}) keeps none of the {len(np.unique(users))} users")
        log = None
        if windows.needs_log:
            (self.folder / "behaviors").mkdir()
            log = BehaviorLog(windows, impressions, self.folder / "behaviors")
            log.partition(files[3], *how)
            found |= {"behaviors": {"rows": log.num_rows, "kept": log.num_kept}}
        return Joiner(ads, profiles, impressions, log), found

    def _check_clicks(self, file: RawFile, found: report.Found) -> None:
        rows, clicks = found["raw_sample"]["rows"], found["raw_sample"]["clicks"]
        if 2 * clicks >= rows:
            told = f"clicks ({clicks}) must be fewer than other impressions ({rows - clicks})"
            raise InputError(f"{file}: {told}; the last columns must be nonclk, clk")

    def _partitions(self, joiner: Joiner, stage: str) -> Iterator[Partition]:
        numbers, done = joiner.impressions["partition"].unique().sort().to_list(), 0
        for partition in map_in_order(joiner.partition, numbers, self.num_threads):
            done += partition.rows.height
            self.progress(stage, done, done / joiner.impressions.height)
            yield partition

    def _vocabularies(self, joiner: Joiner) -> Vocabularies:
        counts = {field: ValueCounts() for field in self.arguments.fields}
        for partition in self._partitions(joiner, "counting ids"):
            for field, of_field in features.count_ids(partition, TEST_DAY - 1).items():
                counts[field].add(of_field)
        return Vocabularies({field: counts[field].at_least(self.arguments.min_count) for field in counts})

    def _write(self, joiner: Joiner, vocabularies: Vocabularies) -> report.Found:
        """The splits' files; what was found on the way."""
        labels = self.arguments.labels
        leaks = LeakCheck({field: vocabularies.num_embeddings(field) for field in SINGLE_FIELDS}, labels)
        positives = {split: dict.fromkeys(labels, 0) for split in SPLITS}
        hashes = report.RowHashes()
        with ParquetFiles({split: self.folder / f"{split}.parquet" for split in SPLITS}, False) as parquet:
            for partition in self._partitions(joiner, "writing rows"):
                hashes.add(partition)
                for name, part in self._splits(features.encode(partition, vocabularies)).items():
                    parquet.write(name, part)
                    leaks.add(name, part, SingleColumns(SINGLE_FIELDS))
                    for label in labels:
                        positives[name][label] += int(part[label].sum())
        for name, num_rows in parquet.num_rows.items():
            if not num_rows:
                raise InputError(f"`raw` (={self.arguments.raw!r}): no row is left for {name}")
        return {
            "num_rows": parquet.num_rows,
            "positives": positives,
            "duplicates": hashes.duplicates(),
            "leak_auc": leaks.aucs(),
        }

    def _splits(self, rows: pl.DataFrame) -> dict[str, pl.DataFrame]:
        """The rows of each split, with the columns of its file."""
        in_test = (rows["day"] == TEST_DAY).to_numpy()
        in_valid = ~in_test & (uniform(rows["line"].to_numpy(), self.arguments.seed, VALID) < VALID_SHARE)
        masks = {"train": ~in_test & ~in_valid, "valid": in_valid, "test": in_test}
        columns = rows.select("time_stamp", GROUP, *self.arguments.labels, *self.arguments.fields)
        return {name: columns.filter(pl.Series(mask)) for name, mask in masks.items()}
