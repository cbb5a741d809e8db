"""Encodes raw rows as a declared table says: the same in preparation, prediction and serving."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from torchrec_mtl.data.id_columns import id_type
from torchrec_mtl.data.lists import Array, to_lists
from torchrec_mtl.data.schema import Field, Schema
from torchrec_mtl.data.table.columns import Part, Values
from torchrec_mtl.data.table.declaration import ByHash, ByTime, Table
from torchrec_mtl.data.table.delays import Delay
from torchrec_mtl.data.table.fields import AgeInDays, Fitted, IdField
from torchrec_mtl.data.table.ids import Hashed, History, Integers, TimeOf, Vocabulary
from torchrec_mtl.data.table.lookup import Lookup
from torchrec_mtl.data.table.numbers import Bins, Dense, LogRound
from torchrec_mtl.data.table.rows import TypedRows, read_rows, value_type
from torchrec_mtl.errors import InputError
from torchrec_mtl.files import digest, read_json, to_json
from torchrec_mtl.tasks import Task, TaskForest

ENCODERS_FILE = "encoders.json"
FORMAT_VERSION = 1
KINDS: dict[str, Any] = {
    kind.__name__: kind for kind in (Vocabulary, Hashed, Integers, TimeOf, History, Bins, LogRound, Dense)
}


@dataclass(frozen=True)
class TableEncoder:
    """The fitted encoders of a table.

    Args:
        table: the declaration.
        fitted: what each field keeps of the training rows, by name; fields that share another's encoder have none.
        multi_valued: names of the fields with lists.
        value_types: "integer" or "string" for each field whose values are either.

    Example::

        >>> import tempfile
        >>> from torchrec_mtl.data.table import ByHash, Vocabulary, prepare_table
        >>> from torchrec_mtl.tasks import TaskChain
        >>> folder = Path(tempfile.mkdtemp())
        >>> raw = pl.DataFrame({"city": ["Rome", "Bonn"] * 50, "key": range(100), "click": [0, 1] * 50})
        >>> raw.write_csv(folder / "raw.csv")
        >>> fields = [Vocabulary("city")]
        >>> table = Table("shop", str(folder / "raw.csv"), TaskChain(["click"]), fields, split=ByHash("key"))
        >>> encoder = TableEncoder.load(prepare_table(table, folder / "prepared"))
        >>> encoder.encode(pa.record_batch({"city": ["Bonn", "Paris"]}))["city"].to_list()
        [3, 1]
    """

    table: Table
    fitted: Mapping[str, Fitted]
    multi_valued: frozenset[str]
    value_types: Mapping[str, str]

    def encode(self, batch: pa.RecordBatch, source: str = "rows", first_row: int = 0) -> pl.DataFrame:
        """Encodes raw rows without labels, for prediction; rows bring their histories as lists of raw values.

        Args:
            batch: raw rows, with the columns that the fields read.
            source: name of the rows in messages.
            first_row: number of the first row in messages.

        Returns:
            Columns of ids (lists for fields with lists), of weights of ids, and dense columns.

        Raises:
            InputError: on the first value that breaks a rule.
        """
        part = Part(batch, source, first_row)
        rows = read_rows(self.table, part, labels=False, brought=[each.name for each in self.table.histories])
        for position in np.flatnonzero(part.bad)[:1].tolist():
            raise InputError(f"{source}: {part.reasons[position]}")
        return self.encode_rows(rows)

    def encode_rows(self, rows: TypedRows, histories: Mapping[str, tuple[Array, Array]] | None = None) -> pl.DataFrame:
        """Encodes rows that have been read; ``histories`` are ids and offsets where the rows do not bring theirs."""
        columns: dict[str, Any] = {}
        for declared in self.table.id_fields:
            kind = id_type(self.num_embeddings(declared.name))
            if histories is not None and declared.name in histories:
                ids, offsets = histories[declared.name]
                columns[declared.name] = to_lists(ids.astype(kind), offsets)
                continue
            values = rows.values[declared.name]
            self._check_values(declared.name, values, rows.part)
            ids = self.ids(declared.name, values.flat).astype(kind)
            columns[declared.name] = ids if values.offsets is None else to_lists(ids, values.offsets)
            if declared.name in rows.weights:
                assert values.offsets is not None
                columns[weight_column(declared.name)] = to_lists(rows.weights[declared.name], values.offsets)
        for dense in self.table.dense_fields:
            encoded = dense.encode(rows.values[dense.name].flat, self.fitted[dense.name])
            columns |= dict(zip(dense.dense, encoded.T, strict=True))
        return pl.DataFrame({name: pl.Series(column) for name, column in columns.items()})

    def ids(self, name: str, values: pa.Array) -> Array:
        """Returns the ids [V], int64, of the values [V] of the field ``name``."""
        owner = self._owner(name)
        return owner.encode(values, self.fitted[owner.name])

    def num_embeddings(self, name: str) -> int:
        """Returns the number of ids of the field ``name``."""
        owner = self._owner(name)
        return owner.num_embeddings(self.fitted[owner.name])

    def _owner(self, name: str) -> IdField:
        declared = self.table.by_name[name]
        assert isinstance(declared, IdField)
        return self.table.owner(declared)

    def _check_values(self, name: str, values: Values, part: Part) -> None:
        if (values.offsets is not None) != (name in self.multi_valued):
            kind = "lists" if name in self.multi_valued else "one value a row"
            raise InputError(f"{part.source}: field {name!r} must have {kind}, as when it was fitted")
        expected, found = self.value_types.get(self._owner(name).name), value_type(values.flat)
        if expected and found and expected != found:
            raise InputError(
                f"{part.source}: field {name!r} must have {expected} values, as when it was fitted, not {found}"
            )

    def schema(self, notes: Mapping[str, str]) -> Schema:
        """The schema of the prepared data set."""
        table = self.table
        return Schema(
            table.name,
            [
                Field(
                    each.name,
                    self.num_embeddings(each.name),
                    each.name in self.multi_valued,
                    weight_column(each.name) if each.weights else None,
                    shares=None if table.owner(each) is each else table.owner(each).name,
                    embedding_dim=each.embedding_dim,
                    pooling=each.pooling,
                    init_std=each.init_std,
                )
                for each in table.id_fields
            ],
            table.prepared_tasks,
            dense=[column for each in table.dense_fields for column in each.dense],
            group=group_column(table),
            notes=dict(notes),
        )

    def save(self, folder: Path) -> str:
        """Writes ``encoders.json`` and one file a vocabulary into ``folder``; returns a digest of their meaning."""
        content: dict[str, Any] = {}
        for number, (name, fitted) in enumerate(self.fitted.items()):
            fitted = dict(fitted)
            if "values" in fitted:
                file = folder / f"vocabulary_{number}.parquet"
                pq.write_table(pa.table({"value": fitted["values"].values}), file, write_page_checksum=True)
                fitted["values"] = {"file": file.name, "sha256": digest(file)}
            content[name] = fitted
        text = to_json(
            {
                "version": FORMAT_VERSION,
                "table": _table_to_json(self.table),
                "fitted": content,
                "multi_valued": sorted(self.multi_valued),
                "value_types": dict(self.value_types),
            },
            indent=1,
            ensure_ascii=False,
        )
        (folder / ENCODERS_FILE).write_text(text + "\n", encoding="utf-8")
        meaning = {name: [each.get("values", {}).get("sha256"), each] for name, each in content.items()}
        return hashlib.sha256(to_json(meaning, sort_keys=True).encode()).hexdigest()

    @classmethod
    def load(cls, folder: str | Path) -> "TableEncoder":
        """Reads what `save` wrote.

        Raises:
            InputError: if a file is missing, damaged, or of another version.
        """
        file = Path(folder) / ENCODERS_FILE
        content = read_json(file)
        if content.get("version") != FORMAT_VERSION:
            rule = f"must be {FORMAT_VERSION}: prepare the table again"
            raise InputError(f"{file}: `version` (={content.get('version')!r}) {rule}")
        try:
            table = _table_from_json(content["table"])
            fitted = {name: _load_fitted(Path(folder), values) for name, values in content["fitted"].items()}
            return cls(table, fitted, frozenset(content["multi_valued"]), content["value_types"])
        except KeyError as error:
            raise InputError(f"{file}: key {error} is missing") from error
        except (TypeError, AttributeError) as error:
            raise InputError(f"{file}: a value is of the wrong kind ({error})") from error


def group_column(table: Table) -> str | None:
    """The name of the prepared column of groups: that of the raw column, unless a field has it."""
    if table.group is None:
        return None
    return f"{table.group}_group" if table.group in table.names else table.group


def weight_column(name: str) -> str:
    """The name of the prepared column with the weights of a field's ids."""
    return f"{name}_weights"


def _load_fitted(folder: Path, fitted: dict[str, Any]) -> dict[str, Any]:
    if "values" not in fitted:
        return fitted
    file = folder / fitted["values"]["file"]
    if not file.is_file() or digest(file) != fitted["values"]["sha256"]:
        raise InputError(
            f"{file}: must be the vocabulary that {ENCODERS_FILE} was written with; it is missing or changed"
        )
    return {**fitted, "values": Lookup(pq.read_table(file)["value"].combine_chunks())}


def _table_to_json(table: Table) -> dict[str, Any]:
    split = table.split and {"kind": type(table.split).__name__, **asdict(table.split)}
    declared = []
    for each in table.fields:
        given = {item.name: getattr(each, item.name) for item in fields(each) if item.name != "_"}
        if isinstance(each.column, AgeInDays):
            given["column"] = {"age_in_days_of": each.column.column}
        declared.append({"kind": type(each).__name__, **given})
    whole = {"name": table.name, "source": table.source, "fields": declared, "split": split, "keep": list(table.keep)}
    rest = {name: getattr(table, name) for name in ("time", "time_unit", "group", "format")}
    if table.delays:
        rest |= {"delays": [asdict(each) for each in table.delays], "as_of": table.as_of}
    return {**whole, **rest, "tasks": asdict(table.tasks)["tasks"]}


def _table_from_json(content: dict[str, Any]) -> Table:
    declared = []
    for item in content["fields"]:
        given = {
            name: tuple(value) if isinstance(value, list) else value for name, value in item.items() if name != "kind"
        }
        if isinstance(given["column"], dict):
            given["column"] = AgeInDays(given["column"]["age_in_days_of"])
        declared.append(KINDS[item["kind"]](**given))
    split = content["split"] and dict(content["split"])
    if split is not None:
        split = {"ByTime": ByTime, "ByHash": ByHash}[split.pop("kind")](**split)
    rest = {name: content[name] for name in ("name", "source", "time", "time_unit", "group", "format", "keep")}
    rest |= {"delays": [Delay(**each) for each in content.get("delays", [])], "as_of": content.get("as_of")}
    return replace(
        Table(tasks=TaskForest(*(Task(**task) for task in content["tasks"])), fields=declared, split=split, **rest)
    )
