"""Reads the impressions of a skeleton file, each with its features and the place of its common features."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.raw.bad_rows import BadRows
from torchrec_mtl.data.raw.files import RawFile
from torchrec_mtl.data.raw.guards import Duplicates
from torchrec_mtl.data.raw.hashes import SAMPLE, uniform
from torchrec_mtl.data.raw.lines import BadLine, Block, Progress, explain_lines, read_lines
from torchrec_mtl.data.table.counts import Counts, counted
from torchrec_mtl.datasets.ali_ccp.common import Columns, CommonFeatures, first_ids
from torchrec_mtl.datasets.ali_ccp.layout import SKELETON, USER_ID
from torchrec_mtl.datasets.ali_ccp.lines import parse_lines, split_features
from torchrec_mtl.errors import InputError, shown

BROKEN = (pl.col("purchase") == 1) & (pl.col("click") == 0)


@dataclass(frozen=True)
class Part:
    """The N rows that are kept of a block.

    Args:
        file: file of the rows: labels, ``place`` of the common features, ``user``, ``line`` and the features of the row
            itself.
        bad: bad lines of the block.
        tally: numbers of good ``rows`` and, among these, of ``broken`` ones (a purchase without a click), ``clicks``,
            ``purchases`` and ``kept`` rows (N).
        first_broken: line of the first broken row, or None.
        places: places of the common features, ``[N]``.
        hashes: hashes of all features of a row, uint64 ``[N]``.
        counts: ``value`` and ``count`` of the ids of the rows' features by field, without the common features.
    """

    file: Path
    bad: list[BadLine]
    tally: Counter[str]
    first_broken: int | None
    places: Array
    hashes: Array
    counts: dict[str, pl.DataFrame]


class Impressions:
    """Counts over all parts of a skeleton file, and the files of its rows.

    Args:
        file: the skeleton file.
        split: name of the raw split: "train" or "test".
        num_common: number C of sets of common features.
        fields: fields of the features.
        duplicates: counter that takes the rows' hashes.

    Attributes:
        references: number of rows with each set of common features, ``[C]``.
        counts: counts of the ids in each field, without the common features.
        tally: sums of the parts' tallies.
    """

    def __init__(
        self, file: RawFile, split: str, num_common: int, fields: Sequence[str], duplicates: Duplicates
    ) -> None:
        self.file, self.split = file, split
        self.references = np.zeros(num_common, np.int64)
        self.counts = {name: Counts() for name in fields}
        self.tally = Counter[str]()
        self._duplicates = duplicates
        self._parts: list[tuple[Path, int, int]] = []  # file, number of good rows, number of clicks
        self._num_runs, self._last_place = 0, -1  # runs of successive rows with the same common features

    def add(self, part: Part) -> None:
        """Adds the next part of the file."""
        for name, counts in self.counts.items():
            counts.add_table(part.counts[name])
        self._duplicates.add(self.split, part.hashes)
        self._parts.append((part.file, part.tally["rows"], part.tally["clicks"]))
        self.tally.update(part.tally)
        self.references += np.bincount(part.places, minlength=len(self.references))
        self._num_runs += int((np.diff(part.places, prepend=self._last_place) != 0).sum())
        self._last_place = int(part.places[-1]) if len(part.places) else self._last_place

    def tables(self) -> Iterator[pl.DataFrame]:
        """Yields the rows, part by part."""
        return (pl.read_ipc(file) for file, *_ in self._parts)

    def click_rates(self, num_pieces: int = 10) -> list[float]:
        """Returns the click rates of the good lines in successive pieces of the file, cut where a part ends."""
        rows, clicks = (np.cumsum(column) for column in list(zip(*self._parts, strict=True))[1:])
        ends = np.unique(rows.searchsorted(rows[-1] * np.arange(1, num_pieces + 1) / num_pieces))
        return (np.diff(clicks[ends], prepend=0) / np.maximum(1, np.diff(rows[ends], prepend=0))).tolist()

    @property
    def is_grouped(self) -> bool:
        """Whether rows with the same common features lie together, so that a prefix of the file is no random sample."""
        return self._num_runs == int((self.references > 0).sum()) < self.tally["kept"]

    def check_label_order(self) -> None:
        """Raises `InputError` if purchases are more frequent than clicks: then the columns are in another order."""
        clicks, purchases = self.tally["clicks"], self.tally["purchases"]
        if purchases > clicks:
            rule = f"purchases ({purchases}) must be rarer than clicks ({clicks})"
            raise InputError(f"{self.file}: {rule}; the columns must be sample_id, click, purchase, ...")


@dataclass(frozen=True)
class SkeletonReader:
    """Reads a skeleton file.

    Args:
        columns: form of the features.
        common: common features that the rows refer to.
        folder: folder for the parts.
        broken_funnel: whether to "drop" or "keep" a row with a purchase and no click, or to "refuse" the file.
        sample: share of the rows to keep.
        seed: seed that draws the sample.
    """

    columns: Columns
    common: CommonFeatures
    folder: Path
    broken_funnel: str
    sample: float
    seed: int

    def read(self, impressions: Impressions, bad_rows: BadRows, progress: Progress, num_threads: int) -> None:
        """Adds all parts of the file to ``impressions``.

        Raises:
            InputError: on a bad row, as `BadRows.add` raises it, or on a broken row if these are refused.
        """
        file = impressions.file
        overriding = None if self.columns.multi_valued else pl.concat(self.common.tables())

        def parse(block: Block) -> Part:
            return self._part(block, overriding)

        for part in read_lines(file, parse, file.name, progress, num_threads):
            bad_rows.add_lines(file, part.bad)
            if part.first_broken is not None and self.broken_funnel == "refuse":
                raise InputError(f"{file}, line {part.first_broken}: purchase (=1) must not happen without click (=0)")
            impressions.add(part)

    def _part(self, block: Block, overriding: pl.DataFrame | None) -> Part:
        lines = parse_lines(block, SKELETON)
        rows = lines.table.with_columns(place=self.common.find(lines.table["key"].to_numpy()))
        strays = (
            explain_lines(block, rows.filter(pl.col("place") < 0)["line"], self._explain_stray)
            if (rows["place"] < 0).any()
            else []
        )
        rows = rows.filter(pl.col("place") >= 0)
        broken = rows.filter(BROKEN)["line"]
        tally = Counter(
            rows=rows.height, broken=len(broken), clicks=int(rows["click"].sum()), purchases=int(rows["purchase"].sum())
        )
        if self.broken_funnel == "drop":
            rows = rows.filter(~BROKEN)
        if self.sample < 1:
            rows = rows.filter(uniform(rows["line"].to_numpy(), self.seed, SAMPLE) < self.sample)
        tally["kept"] = rows.height
        rows, features = self._split_features(rows, overriding)
        places = rows["place"].to_numpy()
        part = self.folder / f"skeleton-{block.first_line}.arrow"
        rows.hstack(features).write_ipc(part, compression="lz4")
        return Part(
            file=part,
            bad=sorted([*lines.bad, *strays], key=lambda bad: bad.number),
            tally=tally,
            first_broken=None if broken.is_empty() else broken[0],
            places=places.astype(np.int32),
            hashes=self.columns.hash_rows(features) + self.common.index["hash"].to_numpy()[places],
            counts={field: counted(self.columns.raw_ids(features, field)[0]) for field in self.columns.fields},
        )

    def _split_features(self, rows: pl.DataFrame, overriding: pl.DataFrame | None) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Returns labels, place, user and line of the rows, and their features that no common feature overrides."""
        triples = split_features(rows, self.columns.fields, self.columns.multi_valued)
        features = self.columns.make_table(triples, rows.height)
        places = rows["place"].to_numpy()
        if overriding is not None:
            features = self.columns.drop_overridden(features, overriding[places])
        is_user = triples.fields == self.columns.fields.index(USER_ID)
        row_users = first_ids(triples.ids[is_user], triples.rows[is_user], rows.height)
        common_users = self.common.index["user"].to_numpy()[places]
        user = pl.Series("user", np.where(common_users > 0, common_users, row_users))
        return rows.select("click", "purchase", "place", user, "line"), features

    def _explain_stray(self, line: str) -> str:
        key = line.split(",")[3]
        return f"`common_feature_index` (={shown(repr(key))}) must occur in {self.common.file}"
