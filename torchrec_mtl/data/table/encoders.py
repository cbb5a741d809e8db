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
from torchrec_mtl.data.schema import Schema
from torchrec_mtl.data.table.any_id import AnyId
from torchrec_mtl.data.table.declaration import ByColumn, ByHash, ByTime, Table, weight_column
from torchrec_mtl.data.table.delays import Delay
from torchrec_mtl.data.table.fields import AgeInDays, Fitted, IdField
from torchrec_mtl.data.table.hashes import stable_hashes
from torchrec_mtl.data.table.ids import Hashed, History, Integers, TimeOf, Vocabulary
from torchrec_mtl.data.table.lookup import Lookup
from torchrec_mtl.data.table.numbers import Bins, Dense, LogRound
from torchrec_mtl.data.table.parts import Part, Values
from torchrec_mtl.data.table.rows import TypedRows, read_rows, value_type
from torchrec_mtl.errors import LARGEST, InputError
from torchrec_mtl.files import digest, read_json, to_json
from torchrec_mtl.modules.id_hash import ANY_ID
from torchrec_mtl.tasks import TaskForest

ENCODERS_FILE = "encoders.json"
FORMAT_VERSION = 1
KINDS: dict[str, Any] = {
    kind.__name__: kind for kind in (Vocabulary, Hashed, AnyId, Integers, TimeOf, History, Bins, LogRound, Dense)
}
SPLIT_KINDS: dict[str, Any] = {kind.__name__: kind for kind in (ByTime, ByHash, ByColumn)}


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

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns that `encode` reads: those of the fields, and the histories."""
        table = self.table
        time = (table.time,) if table.time and table.needs_time else ()
        read = [(each.name,) if isinstance(each, History) else each.columns for each in table.fields]
        return tuple(dict.fromkeys((*time, *(column for columns in read for column in columns))))

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
            values = self._checked(declared.name, rows.values[declared.name], rows.part)
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

    @property
    def wide_histories(self) -> frozenset[str]:
        """The names of the histories whose ids need 64 bits."""
        return frozenset(each.name for each in self.table.histories if self.num_embeddings(each.name) > LARGEST)

    def check_tables(self) -> None:
        """Raises `InputError` if a table cannot have a row for each id, or its fields differ in pooling."""
        for each in self.table.id_fields:
            if LARGEST < (number := self.num_embeddings(each.name)) < ANY_ID:
                rule = f"must have at most {LARGEST} ids, not {number}: set `max_size`, or use `Hashed` or `AnyId`"
                raise InputError(f"field {each.name!r} {rule}")
        schema = self.schema()
        schema.embedding_configs(1, {each.name: 1 for each in schema.fields if each.num_embeddings == ANY_ID})

    def extended(self, counts: Mapping[str, pl.DataFrame]) -> tuple["TableEncoder", dict[str, int]]:
        """Appends the values of later rows to the vocabularies, see `Vocabulary.extended`; all else stays.

        Args:
            counts: ``value`` and ``count`` of each vocabulary's values, by field.

        Returns:
            The encoder, and the number of values without a row, by field.
        """
        fitted, left_out = dict(self.fitted), {}
        for name, counted in counts.items():
            declared = self.table.by_name[name]
            assert isinstance(declared, Vocabulary)
            fitted[name], left_out[name] = declared.extended(self.fitted[name], counted)
        return replace(self, fitted=fitted), left_out

    def num_known(self, name: str) -> int:
        """Returns the number of values of the vocabulary ``name``."""
        return len(self.fitted[name]["values"])

    def _owner(self, name: str) -> IdField:
        declared = self.table.by_name[name]
        assert isinstance(declared, IdField)
        return self.table.owner(declared)

    def _checked(self, name: str, values: Values, part: Part) -> Values:
        values = values.as_lists() if name in self.multi_valued else values
        if (values.offsets is not None) != (name in self.multi_valued):
            kind = "lists" if name in self.multi_valued else "one value a row"
            raise InputError(f"{part.source}: field {name!r} must have {kind}, as when it was fitted")
        expected, found = self.value_types.get(self._owner(name).name), value_type(values.flat)
        if expected and found and expected != found:
            raise InputError(
                f"{part.source}: field {name!r} must have {expected} values, as when it was fitted, not {found}"
            )
        return values

    def schema(self) -> Schema:
        """The schema of the prepared data set."""
        sizes = {each.name: self.num_embeddings(each.name) for each in self.table.id_fields}
        return self.table.schema(sizes, self.multi_valued)

    def save(self, folder: Path) -> str:
        """Writes ``encoders.json`` and one file a vocabulary into ``folder``; returns a digest of their meaning."""
        files, meaning = {}, {}
        for number, (name, fitted) in enumerate(self.fitted.items()):
            files[name] = meaning[name] = fitted
            if "values" in fitted:
                file, values = folder / f"vocabulary_{number}.parquet", fitted["values"].values
                pq.write_table(pa.table({"value": values}), file, write_page_checksum=True)
                files[name] = {**fitted, "values": {"file": file.name, "sha256": digest(file)}}
                meaning[name] = {**fitted, "values": hashlib.sha256(stable_hashes(values).tobytes()).hexdigest()}
        content = {
            "table": _table_to_json(self.table),
            "fitted": files,
            "multi_valued": sorted(self.multi_valued),
            "value_types": dict(self.value_types),
        }
        whole = {"version": FORMAT_VERSION, "sha256": _sha256(content), **content}
        (folder / ENCODERS_FILE).write_text(to_json(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return _sha256(meaning)

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
        content.pop("version")
        if content.pop("sha256", None) != _sha256(content):
            raise InputError(f"{file}: was changed after it was written: its `sha256` is another")
        table = _table_from_json(content["table"])
        fitted = {name: _load_fitted(Path(folder), values) for name, values in content["fitted"].items()}
        return cls(table, fitted, frozenset(content["multi_valued"]), content["value_types"])


def _sha256(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(to_json(content, sort_keys=True).encode()).hexdigest()


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
    return {**whole, **rest, "tasks": table.tasks.to_json()}


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
        split = SPLIT_KINDS[split.pop("kind")](**split)
    rest = {name: content[name] for name in ("name", "source", "time", "time_unit", "group", "format", "keep")}
    rest |= {"delays": [Delay(**each) for each in content.get("delays", [])], "as_of": content.get("as_of")}
    tasks = TaskForest.from_json(content["tasks"])
    return Table(tasks=tasks, fields=declared, split=split, **rest)
