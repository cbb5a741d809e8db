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
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Literal

import polars as pl

from torchrec_mtl.argument_types import checked
from torchrec_mtl.data.raw.bad_rows import BadRows
from torchrec_mtl.data.raw.guards import LeakCheck
from torchrec_mtl.data.raw.lines import Progress, map_in_order
from torchrec_mtl.data.raw.preparation import prepare_once, without_progress, write_report
from torchrec_mtl.data.schema import SPLITS, Schema
from torchrec_mtl.data.table.declaration import ByColumn, Table
from torchrec_mtl.data.table.encoders import TableEncoder
from torchrec_mtl.data.table.ids import Vocabulary
from torchrec_mtl.data.table.parts import Part, as_batch
from torchrec_mtl.data.table.prepare import Preparation
from torchrec_mtl.datasets.taobao.features import HISTORY_FIELDS, ROWS_AT_ONCE
from torchrec_mtl.datasets.taobao.findings import describe
from torchrec_mtl.datasets.taobao.layout import AD, PROFILE, RAW_SAMPLE
from torchrec_mtl.datasets.taobao.sources import TaobaoArguments, read_sources
from torchrec_mtl.tasks import TaskChain

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

    Besides the files of every prepared data set, the folder has its encoders (`TableEncoder`), ``report.json`` (what
    was read, and signs of faulty data) and, if rows were put aside, ``bad_rows.tsv``. The splits also have the columns
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

    return prepare_once(output, asdict(arguments), prepare, NOTES)


def declare(arguments: TaobaoArguments) -> Table:
    """Declares the rows that `Joiner` returns."""
    ids = partial(Vocabulary, min_count=arguments.min_count, order="value", unknown="missing")
    histories = HISTORY_FIELDS if arguments.history_length else ()
    return Table(
        "taobao",
        arguments.raw,
        TaskChain(["click", "purchase"] if arguments.purchase_days else ["click"]),
        [ids("user", column="user_id"), *(ids(name) for name in (*PROFILE, *AD, "pid", *histories))],
        split=ByColumn("split"),
        group="user_id",
        keep=["time_stamp"],
    )


class _Preparation(Preparation):
    """One preparation: reads the files, then joins each partition twice, to count ids and to write rows."""

    fitted_on = ("train", "valid")

    def __init__(self, arguments: TaobaoArguments, folder: Path, bad_rows: BadRows, progress: Progress) -> None:
        super().__init__(declare(arguments), [], folder, bad_rows, progress)
        self.arguments, self.num_threads, self.parts_folder = arguments, os.cpu_count() or 1, folder / "parts"
        self.parts_folder.mkdir()
        self.joiner, self.figures = read_sources(arguments, self.parts_folder, bad_rows, progress, self.num_threads)
        self.positives = {split: dict.fromkeys(self.table.tasks.label_columns, 0) for split in SPLITS}

    def parts(self, *, again: bool) -> Iterator[tuple[Part, None, float]]:
        done = 0
        for rows in map_in_order(self.joiner.join, self.joiner.groups(), self.num_threads):
            for part in rows.iter_slices(2 * ROWS_AT_ONCE):
                yield Part(as_batch(part), RAW_SAMPLE.name, done), None, done / self.joiner.impressions.height
                done += part.height

    def encode(self, encoder: TableEncoder) -> Mapping[str, int]:
        singles = [each.name for each in self.table.id_fields if each.name not in HISTORY_FIELDS]
        self.leaks = LeakCheck({name: encoder.num_embeddings(name) for name in singles}, self.table.tasks.label_columns)
        num_rows = super().encode(encoder)
        shutil.rmtree(self.parts_folder)
        return num_rows

    def written(self, split: str, rows: pl.DataFrame) -> None:
        self.leaks.add(split, rows)
        for label in self.positives[split]:
            self.positives[split][label] += int(rows[label].sum())

    def report(self, schema: Schema) -> None:
        figures = {"arguments": asdict(self.arguments), **self.figures, "positives": self.positives}
        write_report(self.folder, schema, self.bad_rows, describe, figures, self.leaks)
