"""The impressions of a skeleton file, each with its own features and where its common ones are."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl

from torchrec_mtl.data.ali_ccp.columns import mix
from torchrec_mtl.data.ali_ccp.common import Columns, CommonFeatures, users
from torchrec_mtl.data.ali_ccp.layout import SKELETON, USER_ID
from torchrec_mtl.data.ali_ccp.lines import BadLine, parse_lines, split_features
from torchrec_mtl.data.ali_ccp.vocabulary import ValueCounts, count
from torchrec_mtl.data.checks import Array
from torchrec_mtl.data.raw.bad_rows import BadRows
from torchrec_mtl.data.raw.blocks import Block, Progress, read_lines
from torchrec_mtl.data.raw.files import RawFile
from torchrec_mtl.errors import InputError

BROKEN = (pl.col("purchase") == 1) & (pl.col("click") == 0)
SAMPLE, VALID = range(2)  # streams of random numbers under one seed


@dataclass(frozen=True)
class Part:
    """What came of a block: N rows of it are left.

    Args:
        file: N rows: labels, ``place`` of the common features, ``user``, ``line`` and the row's own features.
        bad: its bad lines.
        tally: ``rows`` that are good, ``broken`` ones among them (a purchase without a click), ``clicks`` and
            ``purchases`` among them, ``kept`` rows (N).
        first_broken: the line of the first of them, or None.
        places: of the common features, ``[N]``.
        hashes: of all features of a row, uint64 ``[N]``.
        counts: field -> how often each id occurs in the rows' own features, ``id`` and ``weight``.
    """

    file: Path
    bad: list[BadLine]
    tally: Counter[str]
    first_broken: int | None
    places: Array
    hashes: Array
    counts: dict[str, pl.DataFrame]


@dataclass
class Impressions:
    """All parts of a file together.

    Args:
        file: where they are from.
        references: how many rows have each set of common features, ``[C]``.
        counts: field -> how often each id occurs in the rows' own features.
    """

    file: RawFile
    references: Array
    counts: dict[str, ValueCounts]
    parts: list[Part] = field(default_factory=list)
    tally: Counter[str] = field(default_factory=Counter)

    def add(self, part: Part) -> None:
        for name, counts in self.counts.items():
            counts.add(part.counts[name])
        self.parts.append(replace(part, counts={}))
        self.tally.update(part.tally)
        self.references += np.bincount(part.places, minlength=len(self.references))

    def tables(self) -> Iterator[pl.DataFrame]:
        return (pl.read_ipc(part.file) for part in self.parts)

    @property
    def hashes(self) -> Array:
        return np.concatenate([part.hashes for part in self.parts])

    def click_rates(self, num_pieces: int = 10) -> list[float]:
        """Of good lines in successive pieces of the file, to the nearest part's end."""
        rows, clicks = (np.cumsum([part.tally[name] for part in self.parts]) for name in ("rows", "clicks"))
        ends = np.unique(rows.searchsorted(rows[-1] * np.arange(1, num_pieces + 1) / num_pieces))
        return (np.diff(clicks[ends], prepend=0) / np.maximum(1, np.diff(rows[ends], prepend=0))).tolist()

    @property
    def is_grouped(self) -> bool:
        """Whether rows with the same common features lie together, so that a prefix of the file is no sample."""
        places = np.concatenate([part.places for part in self.parts])
        return int((np.diff(places) != 0).sum()) + 1 == int((self.references > 0).sum()) < len(places)


@dataclass(frozen=True)
class SkeletonReader:
    """Reads a skeleton file.

    Args:
        columns: the form of features.
        common: the common features that its rows refer to.
        folder: where parts go.
        broken_funnel: whether to "drop" or "keep" a row with a purchase and no click, or to "refuse" the file.
        sample: share of the rows to keep.
        seed: of the sample.
    """

    columns: Columns
    common: CommonFeatures
    folder: Path
    broken_funnel: str
    sample: float
    seed: int

    def read(self, file: RawFile, bad_rows: BadRows, progress: Progress, num_threads: int) -> Impressions:
        """Raises InputError on a bad row, as ``bad_rows`` has it, or on a broken one if they are refused."""
        counts = {name: ValueCounts() for name in self.columns.fields}
        impressions = Impressions(file, np.zeros(self.common.index.height, np.int64), counts)
        overriding = None if self.columns.multi_valued else pl.concat(self.common.tables())

        def parse(block: Block) -> Part:
            return self._part(block, overriding)

        for part in read_lines(file, parse, file.name, progress, num_threads):
            for bad in part.bad:
                bad_rows.add(file, bad.number, bad.text, bad.reason)
            if part.first_broken is not None and self.broken_funnel == "refuse":
                raise InputError(f"{file}, line {part.first_broken}: purchase (=1) must not happen without click (=0)")
            impressions.add(part)
        return impressions

    def _part(self, block: Block, overriding: pl.DataFrame | None) -> Part:
        lines = parse_lines(block, SKELETON)
        rows = lines.table.with_columns(place=self.common.find(lines.table["key"].to_numpy()))
        strays = rows.filter(pl.col("place") < 0)
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
        rows, own = self._features(rows, overriding)
        places = rows["place"].to_numpy()
        part = self.folder / f"skeleton-{block.first_line}.arrow"
        rows.hstack(own).write_ipc(part, compression="lz4")
        once = pl.repeat(1, rows.height, dtype=pl.Int64, eager=True)
        return Part(
            file=part,
            bad=sorted([*lines.bad, *self._stray_lines(strays, block)], key=lambda bad: bad.number),
            tally=tally,
            first_broken=None if broken.is_empty() else broken[0],
            places=places.astype(np.int32),
            hashes=self.columns.hashes(own) + self.common.index["hash"].to_numpy()[places],
            counts={field: count(self.columns.raw_ids(own, field, once)) for field in self.columns.fields},
        )

    def _features(self, rows: pl.DataFrame, overriding: pl.DataFrame | None) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Labels, place, user and line; and the rows' own features, without those that the common ones replace."""
        triples = split_features(rows, self.columns.fields, self.columns.multi_valued)
        own = self.columns.table(triples, rows.height)
        places = rows["place"].to_numpy()
        if overriding is not None:
            own = self.columns.without(own, overriding[places])
        is_user = triples.fields == self.columns.fields.index(USER_ID)
        of_rows = users(triples.ids[is_user], triples.rows[is_user], rows.height)
        of_common = self.common.index["user"].to_numpy()[places]
        user = pl.Series("user", np.where(of_common > 0, of_common, of_rows))
        return rows.select("click", "purchase", "place", user, "line"), own

    def _stray_lines(self, strays: pl.DataFrame, block: Block) -> list[BadLine]:
        texts = block.text.split("\n") if strays.height else []
        return [
            BadLine(
                line,
                texts[line - block.first_line],
                f"`common_feature_index` (='{key:016x}') must be that of a row of {self.common.file}",
            )
            for line, key in strays.select("line", "key").iter_rows()
        ]


def uniform(lines: Array, seed: int, stream: int) -> Array:
    """A number in [0, 1) for each line; another seed or stream draws others."""
    return (mix(lines, 2 * seed + stream) >> np.uint64(11)) / 2.0**53
