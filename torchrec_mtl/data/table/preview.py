"""The first rows of a declared table, as they would be encoded, without writing anything."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.raw.preparation import without_progress
from torchrec_mtl.data.schema import SPLITS
from torchrec_mtl.data.table.declaration import Table
from torchrec_mtl.data.table.encoders import TableEncoder
from torchrec_mtl.data.table.fitting import Fitting
from torchrec_mtl.data.table.history import earlier_values
from torchrec_mtl.data.table.parts import WrongLine
from torchrec_mtl.data.table.prepare import Progress, files_of, listed_values, splits_of_rows
from torchrec_mtl.data.table.rows import TypedRows, read_rows
from torchrec_mtl.data.table.sources import read_parts
from torchrec_mtl.errors import InputError


@dataclass(frozen=True)
class FirstRows:
    """What the first rows of a source say.

    Args:
        source: file that was read.
        num_rows: number of rows that were read and broke no rule, by split.
        num_bad: number of rows that broke a rule.
        first_bad: column, rule and value of the first of them; None if there is none.
        raw: the shown rows as they were read.
        encoded: the same rows as encoded, with their labels.
        encoder: the encoders, fitted on all rows that were read, of whatever split.
    """

    source: str
    num_rows: Mapping[str, int]
    num_bad: int
    first_bad: str | None
    raw: list[dict[str, Any]]
    encoded: pl.DataFrame
    encoder: TableEncoder


def first_rows(table: Table, num_shown: int = 5, progress: Progress = without_progress) -> FirstRows:
    """Reads the first part of a source, and encodes it with encoders that are fitted on it.

    Histories list the rows of this part alone.

    Args:
        table: the declaration.
        num_shown: number of rows that are returned.
        progress: function called with the stage, the rows so far and their share.

    Raises:
        InputError: if a file cannot be read, has other columns, or no row is without fault.

    Example::

        >>> import tempfile
        >>> from torchrec_mtl import ByHash, TaskChain, Vocabulary
        >>> file = f"{tempfile.mkdtemp()}/raw.csv"
        >>> pl.DataFrame({"city": ["Rome", "Bonn"] * 50, "key": range(100), "click": [0, 1] * 50}).write_csv(file)
        >>> first = first_rows(Table("shop", file, TaskChain(["click"]), [Vocabulary("city")], split=ByHash("key")), 2)
        >>> first.encoded.rows(), first.num_bad
        ([(3, 0.0), (2, 1.0)], 0)
    """
    progress("read", 0, 0.0)
    for file in files_of(table):
        wrong: list[WrongLine] = []
        for part in read_parts(file.file, table.columns, wrong):
            progress("read", part.batch.num_rows, 1.0)
            rows = read_rows(table, part)
            progress("check", len(rows), 1.0)
            bad = {line.row: str(line) for line in wrong}
            bad |= {part.number(position): reason for position, reason in part.reasons.items()}
            first_bad = bad[min(bad)] if bad else None
            good = rows.take(~part.bad)
            if not len(good):
                if first_bad is None:
                    continue
                raise InputError(f"{part.source}: {first_bad}; no row of the first {len(rows):,} is without fault")
            fitting = Fitting(table)
            fitting.look(good)
            fitting.add(good)
            encoder = fitting.fit()
            progress("fit", len(good), 1.0)
            counts = np.bincount(splits_of_rows(table, good, file.split), minlength=len(SPLITS)).tolist()
            encoded = encoder.encode_rows(good, _histories(encoder, good))
            labels = [pl.Series(name, column) for name, column in good.labels.items() if name not in encoded.columns]
            shown = encoded.hstack(labels).head(num_shown)
            raw = good.part.batch.slice(0, num_shown).to_pylist()
            return FirstRows(
                part.source,
                dict(zip(SPLITS, counts, strict=True)),
                len(bad),
                first_bad,
                raw,
                shown,
                encoder,
            )
    raise InputError(f"`source` (={table.source!r}) must have at least one row")


def _histories(encoder: TableEncoder, rows: TypedRows) -> dict[str, tuple[Array, Array]]:
    if not encoder.table.histories:
        return {}
    assert rows.time is not None
    groups, (values, listed) = rows.group_numbers(), listed_values(encoder, rows)
    return {
        each.name: earlier_values(
            groups, rows.time, values[each.name], listed[each.name], last=each.last, within=each.within_us
        )
        for each in encoder.table.histories
    }
