"""Fits the encoders of a declared table on its training rows."""

import polars as pl

from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.table.counts import Counts
from torchrec_mtl.data.table.declaration import Table
from torchrec_mtl.data.table.encoders import TableEncoder
from torchrec_mtl.data.table.fields import IdField
from torchrec_mtl.data.table.ids import History
from torchrec_mtl.data.table.rows import TypedRows, value_type
from torchrec_mtl.errors import InputError


class Fitting:
    """Collects what the training rows say, part by part, and fits the encoders.

    Args:
        table: the declaration.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self.counts = {each.name: Counts() for each in table.fields if not isinstance(each, History)}
        self.noted: dict[tuple[str, str, str, str], str] = {}  # what `note` was given, and the first source
        self._shapes: dict[str, str] = {}  # of fields
        self._value_types: dict[str, str] = {}  # of fields
        self._further_types: dict[str, str] = {}  # of times, the group and the key of a split

    def look(self, rows: TypedRows) -> None:
        """Notes which fields hold lists, which columns integers or strings, and which times have a zone.

        All parts must agree, or one user would be two.

        Raises:
            InputError: if they do not.
        """
        source = rows.part.source
        for name, values in rows.values.items():
            if values.offsets is not None or values.flat.null_count < len(values.flat):
                shape = "one value a row" if values.offsets is None else "lists"
                self.note(source, f"field {name!r} must have", "_shapes", name, shape)
            self.note(source, f"field {name!r} must have values of type", "_value_types", name, value_type(values.flat))
        for column, keys in (("group", rows.groups), ("key of the split", rows.key)):
            kind = None if keys is None else value_type(keys)
            self.note(source, f"the {column} must have values of type", "_further_types", column, kind)
        for column in self.table.keep:
            kind = str(pl.Series(rows.part.column(column)).dtype)
            self.note(source, f"column {column!r} must hold", "_further_types", f"kept {column}", kind)
        for column, zoned in rows.part.zoned.items():
            zone = "with a time zone" if zoned else "without a time zone"
            self.note(source, f"column {column!r} must have times", "_further_types", f"zone of {column}", zone)

    def note(self, source: str, subject: str, known: str, name: str, kind: str | None) -> None:
        """Notes what ``subject`` is in ``source``, in the attribute ``known``; `look` does so for all rows."""
        if kind is None:
            return
        self.noted.setdefault((subject, known, name, kind), source)
        before = getattr(self, known).setdefault(name, kind)
        if before != kind:
            raise InputError(f"{source}: {subject} {before}, as the rows before, not {kind}")

    def add(self, rows: TypedRows, training: Array | None = None) -> None:
        """Counts training rows: those of the mask ``training`` [N], or all."""
        for name, counts in self.counts.items():
            declared = self.table.by_name[name]
            if not isinstance(declared, IdField) or declared.shares is None:
                of_rows = rows.values[name] if training is None else rows.values[name].take(training)
                values = declared.to_count(of_rows.flat)
                if values is not None:
                    counts.add(values)

    def fit(self) -> TableEncoder:
        """Returns the encoders.

        Raises:
            InputError: if a history is of a field with lists.
        """
        fitted = {
            each.name: each.fit(self.counts[each.name].table())
            for each in self.table.fields
            if not isinstance(each, IdField) or self.table.owner(each) is each
        }
        lists = {name for name, shape in self._shapes.items() if shape == "lists"}
        for each in self.table.histories:
            if each.of in lists:
                raise InputError(f"history {each.name!r} must be of a field with one value a row, not of {each.of!r}")
        for declared in self.table.id_fields:
            if declared.weights is not None and declared.name not in lists:
                raise InputError(f"field {declared.name!r} must have lists, as it has `weights`")
        lists |= {each.name for each in self.table.histories}
        return TableEncoder(self.table, fitted, frozenset(lists), self._value_types)
