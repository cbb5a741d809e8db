"""Prepares Ali-CCP from the raw files, under one of the two protocols that `protocols` describes.

A tenth of the rows of the raw train file, drawn by line number and seed, is valid. Ids are coded in ascending order and
the codes are saved. Rows keep the order of the raw files, which have no time.
"""

import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from torchrec_mtl.argument_types import checked
from torchrec_mtl.data.raw.bad_rows import BadRows
from torchrec_mtl.data.raw.files import find_raw_file
from torchrec_mtl.data.raw.guards import Duplicates, LeakCheck
from torchrec_mtl.data.raw.lines import Progress
from torchrec_mtl.data.raw.preparation import prepare_once, without_progress, write_report
from torchrec_mtl.data.schema import Schema
from torchrec_mtl.data.table.encoders import TableEncoder
from torchrec_mtl.data.writer import SplitFiles
from torchrec_mtl.datasets.ali_ccp.common import CommonFeatures, read_common
from torchrec_mtl.datasets.ali_ccp.encode import Encoder, fit
from torchrec_mtl.datasets.ali_ccp.findings import describe, summarise
from torchrec_mtl.datasets.ali_ccp.impressions import Impressions, SkeletonReader
from torchrec_mtl.datasets.ali_ccp.layout import LABELS, RAW_SPLITS
from torchrec_mtl.datasets.ali_ccp.protocols import AliCcpArguments, declare
from torchrec_mtl.errors import InputError

NOTES = {
    "source": "Ali-CCP: Alibaba Click and Conversion Prediction, tianchi.aliyun.com data set 408 (ESMM, SIGIR 2018)",
    "order": "rows are in the order of the raw files, grouped by common features: a prefix is no random sample",
}


@checked
def prepare_ali_ccp(
    raw: str | Path,
    output: str | Path,
    protocol: Literal["aitm", "full"] = "aitm",
    *,
    bad_rows: Literal["strict", "quarantine"] = "strict",
    bad_rows_limit: int = 1000,
    broken_funnel: Literal["", "drop", "keep", "refuse"] = "",
    sample: float = 1.0,
    seed: int = 0,
    progress: Progress = without_progress,
) -> Path:
    """Prepares Ali-CCP in the folder ``output``, unless it is prepared already.

    Besides the files of every prepared data set, the folder has its encoders (`TableEncoder`), ``report.json`` (what
    was read, and signs of faulty data) and, if rows were put aside, ``bad_rows.tsv``. An interrupted preparation leaves
    nothing.

    Args:
        raw: folder of the four raw files, plain, as .gz or .zst, or in tar archives.
        output: folder of the prepared data set.
        protocol: "aitm" for one id in each of 18 fields, as in published figures; "full" for all ids of all 23 fields.
        bad_rows: what happens to a row that breaks the format: "strict" refuses the file, "quarantine" puts the row
            aside in bad_rows.tsv.
        bad_rows_limit: largest number of rows to put aside; one more is an error.
        broken_funnel: what happens to a row with a purchase and no click: "drop" it, "keep" it with weight 0, or
            "refuse" the file. By default, protocol "aitm" drops it and "full" keeps it.
        sample: share of the rows to keep, drawn by line number; above 0 and at most 1.
        seed: seed that draws the validation rows and the sample.
        progress: function that is called with a stage, the number of rows so far, and the share of the stage that is
            done.

    Returns:
        The path of ``output``.

    Raises:
        InputError: if an argument is wrong, a raw file is missing, damaged or breaks the format, purchases are more
            frequent than clicks, or ``output`` was prepared with other arguments.

    Example::

        >>> prepare_ali_ccp("raw", "ali_ccp", protocol="all")
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: `protocol` (='all') must be one of ['aitm', 'full']
    """
    arguments = AliCcpArguments(
        raw=str(Path(raw).resolve()),
        protocol=protocol,
        bad_rows=bad_rows,
        bad_rows_limit=bad_rows_limit,
        broken_funnel=broken_funnel,
        sample=float(sample),
        seed=seed,
    )

    def prepare(folder: Path, rows_aside: BadRows) -> Schema:
        return _Preparation(arguments, folder, rows_aside, progress).run()

    return prepare_once(output, asdict(arguments), prepare, NOTES)


class _Preparation:
    """One preparation: the first pass reads the raw files into parts in a working folder, the second encodes them."""

    def __init__(self, arguments: AliCcpArguments, folder: Path, bad_rows: BadRows, progress: Progress) -> None:
        self.arguments, self.folder, self.bad_rows, self.progress = arguments, folder, bad_rows, progress
        self.columns = arguments.protocol_settings.columns
        self.num_threads = os.cpu_count() or 1

    def run(self) -> Schema:
        parts = self.folder / "parts"
        duplicates = Duplicates(parts / "hashes")
        read = {split: self._read(split, parts / split, duplicates) for split in RAW_SPLITS}
        encoder = fit(declare(self.arguments), self.columns, *read["train"])
        schema = replace(encoder.schema(), vocabulary_digest=encoder.save(self.folder))
        leaks = LeakCheck({field.name: field.num_embeddings for field in schema.fields}, LABELS)
        schema = replace(schema, num_rows=self._write(read, encoder, leaks))
        impressions = {split: split_impressions for split, (_, split_impressions) in read.items()}
        figures = {"arguments": asdict(self.arguments), **summarise(impressions, duplicates)}
        write_report(self.folder, schema, self.bad_rows, describe, figures, leaks)
        shutil.rmtree(parts)
        return schema

    def _read(self, split: str, parts: Path, duplicates: Duplicates) -> tuple[CommonFeatures, Impressions]:
        """Runs the first pass over a raw split."""
        arguments = self.arguments
        common_file, skeleton_file = (
            find_raw_file(arguments.raw, f"{kind}_{split}.csv", split)
            for kind in ("common_features", "sample_skeleton")
        )
        parts.mkdir()
        common = read_common(common_file, self.columns, parts, self.bad_rows, self.progress, self.num_threads)
        impressions = Impressions(skeleton_file, split, common.index.height, self.columns.fields, duplicates)
        reader = SkeletonReader(self.columns, common, parts, arguments.broken_funnel, arguments.sample, arguments.seed)
        reader.read(impressions, self.bad_rows, self.progress, self.num_threads)
        impressions.check_label_order()
        if not impressions.tally["kept"]:
            raise InputError(f"{skeleton_file}: must have a good row to keep; {impressions.tally['rows']} are good")
        return common, impressions

    def _write(
        self, read: dict[str, tuple[CommonFeatures, Impressions]], fitted: TableEncoder, leaks: LeakCheck
    ) -> dict[str, int]:
        """Runs the second pass. Returns the number of rows in each file."""
        encoder = Encoder(self.columns, fitted, self.arguments.seed)
        with SplitFiles(self.folder, long_lists=self.columns.multi_valued) as files:
            for split, (common, impressions) in read.items():
                tables = encoder.tables(common, impressions, f"{split} rows", self.progress, self.num_threads)
                for rows, for_valid in tables:
                    if split == "test":
                        files.write("test", rows)
                        continue
                    for name, part in (("train", rows.filter(~for_valid)), ("valid", rows.filter(for_valid))):
                        files.write(name, part)
                        leaks.add(name, part)
        files.check_not_empty(self.arguments.raw)
        return files.num_rows
