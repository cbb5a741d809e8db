"""Ali-CCP, from the raw files to a prepared data set, under one of two protocols.

``aitm``: what published figures use, after the preparation of the AITM authors (Xi et al., KDD 2021). One id for each
of 18 fields. Rows with a purchase and no click are dropped. Where a row and its common features both have a field, the
common features win. An id is kept if it occurs in at least 12 rows of the raw train file; missing, rare and unseen ones
share 0.

``full``: all 23 fields with all their ids, the values as weights; an id is kept if it occurs at all in the raw train
file. Rows with a purchase and no click are kept, with weight 0 in column ``known``.

A tenth of the raw train file's rows, drawn by line number and seed, is valid. In both, ids are coded in their order and
saved, and rows are in the order of the raw files. There is no time in these files.
"""

import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from torchrec_mtl.data.encoders import Vocabularies
from torchrec_mtl.data.raw.bad_rows import BadRows
from torchrec_mtl.data.raw.files import find_raw_file
from torchrec_mtl.data.raw.guards import Duplicates, LeakCheck
from torchrec_mtl.data.raw.lines import Progress
from torchrec_mtl.data.raw.preparation import prepare_from_raw, without_progress, write_report
from torchrec_mtl.data.schema import Field, Schema
from torchrec_mtl.data.writer import SplitFiles
from torchrec_mtl.datasets.ali_ccp.columns import weight_column
from torchrec_mtl.datasets.ali_ccp.common import CommonFeatures, read_common
from torchrec_mtl.datasets.ali_ccp.encode import KNOWN, Encoder, count_ids
from torchrec_mtl.datasets.ali_ccp.findings import describe, found_in
from torchrec_mtl.datasets.ali_ccp.impressions import Impressions, SkeletonReader
from torchrec_mtl.datasets.ali_ccp.layout import LABELS, RAW_SPLITS
from torchrec_mtl.datasets.ali_ccp.protocols import AliCcpArguments
from torchrec_mtl.errors import InputError
from torchrec_mtl.tasks import TaskChain

NOTES = {
    "source": "Ali-CCP: Alibaba Click and Conversion Prediction, tianchi.aliyun.com data set 408 (ESMM, SIGIR 2018)",
    "order": "rows are in the raw files' order, those with the same common features together: a prefix is no sample",
}


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
    """The prepared data set ``output``, built first if it is not there yet.

    Beside what every data set has it holds ``vocabularies.parquet``, ``report.json`` (what was read, and what the
    guards found) and, if rows were put aside, ``bad_rows.tsv``. An interrupted preparation leaves nothing.

    Args:
        raw: folder of the four raw files, plain, as .gz or .zst, or in tar archives.
        output: the data set's own folder.
        protocol: "aitm" or "full".
        bad_rows: "strict" refuses a file with a bad row, "quarantine" puts such rows aside.
        bad_rows_limit: how many may be put aside.
        broken_funnel: whether to "drop" or "keep" rows with a purchase and no click, or to "refuse" a file with one;
            as the protocol has it by default. Those kept have weight 0.
        sample: share of the rows to keep, above 0 and at most 1; drawn by line number.
        seed: of the rows in valid and in the sample.
        progress: called with a stage, the rows read, and the share of the stage that is done.

    Returns:
        ``output`` as a path.

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

    return prepare_from_raw(arguments, output, prepare, NOTES)


class _Preparation:
    """One run. First pass: the raw files to parts in a working folder. Second pass: parts to rows."""

    def __init__(self, arguments: AliCcpArguments, folder: Path, bad_rows: BadRows, progress: Progress) -> None:
        self.arguments, self.folder, self.bad_rows, self.progress = arguments, folder, bad_rows, progress
        self.columns = arguments.protocol_settings.columns
        self.num_threads = os.cpu_count() or 1

    def run(self) -> Schema:
        parts = self.folder / "parts"
        duplicates = Duplicates(parts / "hashes")
        read = {split: self._read(split, parts / split, duplicates) for split in RAW_SPLITS}
        vocabularies = count_ids(self.columns, *read["train"], self.arguments.protocol_settings.min_count)
        vocabularies.save(self.folder)
        leaks = LeakCheck({field: vocabularies.num_embeddings(field) for field in self.columns.fields}, LABELS)
        num_rows = self._write(read, vocabularies, leaks)
        impressions = {split: of_split for split, (_, of_split) in read.items()}
        found = {"arguments": asdict(self.arguments), **found_in(impressions, num_rows, duplicates)}
        write_report(self.folder, found, self.bad_rows, vocabularies, leaks, describe)
        shutil.rmtree(parts)
        return self._schema(vocabularies)

    def _read(self, split: str, parts: Path, duplicates: Duplicates) -> tuple[CommonFeatures, Impressions]:
        """The first pass over one of the raw splits."""
        arguments = self.arguments
        of_common, of_rows = (
            find_raw_file(arguments.raw, f"{kind}_{split}.csv", split)
            for kind in ("common_features", "sample_skeleton")
        )
        parts.mkdir()
        common = read_common(of_common, self.columns, parts, self.bad_rows, self.progress, self.num_threads)
        impressions = Impressions(of_rows, split, common.index.height, self.columns.fields, duplicates)
        reader = SkeletonReader(self.columns, common, parts, arguments.broken_funnel, arguments.sample, arguments.seed)
        reader.read(impressions, self.bad_rows, self.progress, self.num_threads)
        impressions.check_label_order()
        if not impressions.tally["kept"]:
            raise InputError(f"{of_rows}: must have a good row to keep; {impressions.tally['rows']} are good")
        return common, impressions

    def _write(
        self, read: dict[str, tuple[CommonFeatures, Impressions]], vocabularies: Vocabularies, leaks: LeakCheck
    ) -> dict[str, int]:
        """The second pass; the number of rows in each file."""
        keeps_broken = self.arguments.broken_funnel == "keep"
        encoder = Encoder(self.columns, vocabularies, keeps_broken, self.arguments.seed)
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

    def _schema(self, vocabularies: Vocabularies) -> Schema:
        weighted = self.columns.multi_valued
        fields = [
            Field(field, vocabularies.num_embeddings(field), weighted, weight_column(field) if weighted else None)
            for field in self.columns.fields
        ]
        weight_columns = [KNOWN] * len(LABELS) if self.arguments.broken_funnel == "keep" else None
        return Schema(
            f"ali_ccp-{self.arguments.protocol}",
            fields,
            TaskChain(LABELS, weight_columns=weight_columns),
            group="user",
            vocabulary_digest=vocabularies.digest,
        )
