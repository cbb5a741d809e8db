"""Fits the encoders of a declared table on its training rows."""

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
        self._multi_valued: dict[str, bool] = {}
        self._value_types: dict[str, str] = {}

    def look(self, rows: TypedRows) -> None:
        """Notes which fields hold lists, and which hold integers or strings; all parts must agree.

        Raises:
            InputError: if they do not.
        """
        for name, values in rows.values.items():
            is_list, kind = values.offsets is not None, value_type(values.flat)
            if not len(values.flat) or (kind is None and not is_list):
                continue
            if self._multi_valued.setdefault(name, is_list) != is_list:
                raise InputError(f"{rows.part.source}: field {name!r} must have lists in all files, or in none")
            declared = self.table.by_name[name]
            if is_list and not isinstance(declared, IdField):
                raise InputError(f"{rows.part.source}: field {name!r} must have one number a row, not lists")
            if kind and self._value_types.setdefault(name, kind) != kind:
                expected = self._value_types[name]
                raise InputError(
                    f"{rows.part.source}: field {name!r} must have {expected} values, as other files, not {kind}"
                )

    def add(self, rows: TypedRows) -> None:
        """Counts training rows."""
        for name, counts in self.counts.items():
            declared = self.table.by_name[name]
            if not isinstance(declared, IdField) or declared.shares is None:
                values = declared.to_count(rows.values[name].flat)
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
        lists = {name for name, is_list in self._multi_valued.items() if is_list}
        for each in self.table.histories:
            if each.of in lists:
                raise InputError(f"history {each.name!r} must be of a field with one value a row, not of {each.of!r}")
        for declared in self.table.id_fields:
            if declared.weights is not None and declared.name not in lists:
                raise InputError(f"field {declared.name!r} must have lists, as it has `weights`")
        lists |= {each.name for each in self.table.histories}
        return TableEncoder(self.table, fitted, frozenset(lists), self._value_types)
