"""The schema of a prepared data set: its fields, its tasks, its row counts.

A prepared data set is a directory with ``schema.json``, ``train.parquet``, ``valid.parquet`` and ``test.parquet``.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import nn
from torchrec.modules.embedding_configs import EmbeddingBagConfig, PoolingType

from torchrec_mtl.argument_types import check_type, checked
from torchrec_mtl.errors import LARGEST, InputError, check_at_least, check_file_name, not_one_of
from torchrec_mtl.files import read_json, to_json, write_whole
from torchrec_mtl.tasks import TaskChain, TaskForest

SCHEMA_FILE = "schema.json"
FORMAT_VERSION = 2
SPLITS = ("train", "valid", "test")
_POOLING = {"sum": PoolingType.SUM, "mean": PoolingType.MEAN}
_OPTIONAL = ("weight_column", "unknown_row", "shares", "embedding_dim", "pooling", "init_std", "num_rows")  # of a field


class HasEmbeddingBagConfigs(Protocol):
    """An EmbeddingBagCollection, sharded or not."""

    def embedding_bag_configs(self) -> list[EmbeddingBagConfig]: ...


def _table_name(field: str) -> str:
    return "t_" + field.replace(".", "_")  # torch allows no dot in the name of a parameter


@dataclass(frozen=True)
class Field:
    """A categorical field, whose ids are ``0 .. num_embeddings - 1``.

    Args:
        name: name of the column, and key of the feature in a KeyedJaggedTensor.
        num_embeddings: number of rows that the embedding table needs; `ANY_ID`, 2^63 - 1, for ids without a
            vocabulary, which are any integers below it.
        multi_valued: whether a row holds a list of ids, possibly empty, rather than one id.
        weight_column: name of a column with a list of finite weights, one for each id; only for a multi-valued field.
        unknown_row: row of the table, from 0 to ``num_embeddings - 1``, that stands for every id outside this range;
            None refuses such an id. It may be a row that no other id has, or that of a known id, such as 0 for
            "missing". A missing value is always refused.
        shares: name of the field whose table this field looks up too; its own table by default.
        embedding_dim: dimension of the table; by default the one that the run chooses.
        pooling: how the embeddings of a row's ids are joined, "sum" or "mean".
        init_std: standard deviation of the table's first values; by default the one that the run chooses.
        num_rows: rows of the table if the run gives ids rows as they come, as it does for `ANY_ID`; by default as many
            as the run chooses.

    Raises:
        InputError: if an argument is of the wrong kind or out of its range.

    Example::

        >>> fields = [Field("store", 112, unknown_row=0)]
        >>> fields += [Field("recent_stores", 112, multi_valued=True, shares="store", unknown_row=0)]
    """

    name: str
    num_embeddings: int
    multi_valued: bool = False
    weight_column: str | None = None
    unknown_row: int | None = None
    _: KW_ONLY
    shares: str | None = None
    embedding_dim: int | None = None
    pooling: Literal["sum", "mean"] = "sum"
    init_std: float | None = None
    num_rows: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise InputError(f"`name` (={self.name!r}) of a field must be a non-empty string")
        if type(self.num_embeddings) is not int or self.num_embeddings < 1:
            raise self._error("num_embeddings", "must be an integer of at least 1")
        if not isinstance(self.multi_valued, bool):
            raise self._error("multi_valued", "must be a bool")
        if self.weight_column is not None and (not isinstance(self.weight_column, str) or not self.weight_column):
            raise self._error("weight_column", "must be a non-empty string or None")
        if self.weight_column is not None and not self.multi_valued:
            raise self._error("weight_column", "must be None: the field is not multi-valued")
        if self.unknown_row is not None and (
            type(self.unknown_row) is not int or not 0 <= self.unknown_row < self.num_embeddings
        ):
            raise self._error("unknown_row", f"must be None or an integer from 0 to {self.num_embeddings - 1}")
        if self.shares is not None and (not isinstance(self.shares, str) or self.shares == self.name):
            raise self._error("shares", "must name another field")
        if self.pooling not in _POOLING:
            raise self._error("pooling", f"must be one of {list(_POOLING)}")
        if self.embedding_dim is not None and (type(self.embedding_dim) is not int or self.embedding_dim < 1):
            raise self._error("embedding_dim", "must be an integer of at least 1, or None")
        if self.init_std is not None and not 0 <= self.init_std < math.inf:
            raise self._error("init_std", "must be a finite number of at least 0, or None")
        if self.num_rows is not None and (type(self.num_rows) is not int or self.num_rows < 1):
            raise self._error("num_rows", "must be an integer of at least 1, or None")

    def _error(self, argument: str, rule: str) -> InputError:
        return InputError(f"`{argument}` (={getattr(self, argument)!r}) of field {self.name!r} {rule}")


@dataclass(frozen=True)
class Schema:
    """The columns of a data set and their meaning.

    Args:
        name: name of the data set.
        fields: categorical fields.
        tasks: the funnel, with its label and weight columns.
        dense: names of the dense columns, which hold finite floats.
        group: name of the integer column whose values group rows for GAUC (a user, a household); it may be a field.
        num_rows: number of rows in each split; empty until the data set is published.
        notes: what a reader of results on this data must know: what an exposure is, sources, licence.
        vocabulary_digest: digest of what the ids stand for, so that a checkpoint is not used with other ids; None if
            the data set has no vocabularies.

    Raises:
        InputError: if a column has two roles or an argument is of the wrong kind.

    Example::

        >>> fields = [Field("store", 112), Field("tags", 50, multi_valued=True)]
        >>> schema = Schema("shop", fields, TaskChain(["click", "purchase"]), group="store")
        >>> schema.columns
        ('store', 'tags', 'click', 'purchase')
        >>> [(table.name, table.num_embeddings) for table in schema.embedding_configs(embedding_dim=8)]
        [('t_store', 112), ('t_tags', 50)]
    """

    name: str
    fields: Sequence[Field]
    tasks: TaskForest
    dense: Sequence[str] = ()
    group: str | None = None
    num_rows: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    vocabulary_digest: str | None = None

    def __post_init__(self) -> None:
        check_type("fields", self.fields, Sequence[Field])
        check_type("tasks", self.tasks, TaskForest)
        check_type("dense", self.dense, Sequence[str] | str)  # a string gets a sentence of its own below
        object.__setattr__(self, "fields", tuple(self.fields))
        object.__setattr__(self, "dense", self.dense if isinstance(self.dense, str) else tuple(self.dense))
        check_file_name("`name` of a data set", self.name)
        for argument, kind in {"group": str, "vocabulary_digest": str, "notes": Mapping, "num_rows": Mapping}.items():
            value = getattr(self, argument)
            if not isinstance(value, kind) and (value is not None or kind is Mapping):
                rule = f"must be of type {kind.__name__}"
                raise InputError(f"`{argument}` (={value!r:.60}) of data set {self.name!r} {rule}")
        if isinstance(self.dense, str) or not all(isinstance(column, str) and column for column in self.dense):
            raise InputError(f"`dense` (={self.dense!r:.60}) of data set {self.name!r} must be names of columns")
        if not self.fields:
            raise InputError(f"`fields` of data set {self.name!r} must not be empty")
        weight_columns = {column for column in self.tasks.weight_columns if column}  # tasks may share one
        columns = (*self.field_names, *self.id_weight_columns, *self.dense, *self.tasks.label_columns, *weight_columns)
        for column, count in Counter(columns).items():
            if count > 1:
                raise InputError(f"column {column!r} of data set {self.name!r} must have one role, not {count}")
        tables = [_table_name(name) for name in self.field_names]
        for name, table in zip(self.field_names, tables, strict=True):
            if tables.count(table) > 1:
                rule = f"must not become table {table!r}, as another field of data set {self.name!r} does"
                raise InputError(f"field {name!r} {rule}")
        for each in self.fields:
            self._check_sharing(each)
            if self.id_weight_columns and each.multi_valued and each.pooling != "sum":
                rule = "must be 'sum': PyTorch's tables can only sum where ids have weights, as in this data set"
                raise InputError(f"`pooling` (={each.pooling!r}) of field {each.name!r} {rule}")
        for split, rows in self.num_rows.items():
            if split not in SPLITS or type(rows) is not int or rows < 1:
                rule = f"must give {list(SPLITS)} integers of at least 1"
                raise InputError(f"`num_rows` (={dict(self.num_rows)}) {rule}")

    def _check_sharing(self, field: Field) -> None:
        owner = self.owner(field)
        if owner.shares is not None or owner.num_embeddings != field.num_embeddings:
            rule = f"must be a field with a table of {field.num_embeddings} ids, not {owner}"
            raise InputError(f"`shares` (={field.shares!r}) of field {field.name!r} {rule}")
        if field is not owner and (field.embedding_dim or field.init_std or field.num_rows) is not None:
            raise InputError(
                f"field {field.name!r} has no `embedding_dim`, `init_std` or `num_rows`: it shares a table"
            )

    def owner(self, field: Field) -> Field:
        """Returns the field whose table ``field`` looks up, which may be itself."""
        if field.shares is None:
            return field
        found = {each.name: each for each in self.fields}.get(field.shares)
        if found is None:
            raise InputError(f"`shares` of field {field.name!r}: {not_one_of('field', field.shares, self.field_names)}")
        return found

    @property
    def field_names(self) -> tuple[str, ...]:
        return tuple(field.name for field in self.fields)

    @property
    def id_weight_columns(self) -> tuple[str, ...]:
        """The columns with weights of ids. If there are any, every KeyedJaggedTensor has weights, 1 for other fields,
        and the EmbeddingBagCollection must be built with ``is_weighted=True``."""
        return tuple(field.weight_column for field in self.fields if field.weight_column is not None)

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that the file of a split must have."""
        targets = (*self.tasks.label_columns, *(column for column in self.tasks.weight_columns if column))
        group = () if self.group is None else (self.group,)
        return tuple(dict.fromkeys((*self.field_names, *self.id_weight_columns, *self.dense, *targets, *group)))

    @checked
    def select(self, names: Sequence[str]) -> "Schema":
        """Returns the schema with only the fields ``names``, in that order."""
        by_name = {field.name: field for field in self.fields}
        for name in names:
            if name not in by_name:
                raise InputError(f"field {name!r} must be one of data set {self.name!r}: {list(by_name)}")
        fields: list[Field] = []
        owners: dict[str, str] = {}  # where a field's owner is left out, the first of its table's fields owns the table
        for each in (by_name[name] for name in names):
            if each.shares is not None and each.shares not in names:
                owner = self.owner(each)
                first = owners.setdefault(owner.name, each.name)
                if first == each.name:
                    of_table = {name: getattr(owner, name) for name in ("embedding_dim", "init_std", "num_rows")}
                    each = replace(each, shares=None, **of_table)
                else:
                    each = replace(each, shares=first)
            fields.append(each)
        return replace(self, fields=fields)

    @checked
    def embedding_configs(
        self, embedding_dim: int, num_rows: Mapping[str, int] | None = None
    ) -> list[EmbeddingBagConfig]:
        """Returns one table ``t_<field>`` per field that shares no other's, for an EmbeddingBagCollection.

        In the name of a table, ``_`` stands for ``.``.

        Args:
            embedding_dim: dimension of the tables whose fields do not name one.
            num_rows: rows of the tables of fields whose ids have no vocabulary, by the name of the field that the table
                is named after.

        Raises:
            InputError: if another field has more ids than a table can have rows, ``embedding_dim`` is below 1, or
                fields of one table differ in pooling.
        """
        check_at_least(1, embedding_dim=embedding_dim)
        num_rows = num_rows or {}
        for each in self.fields:
            if each.num_embeddings > LARGEST and self.owner(each).name not in num_rows:
                rule = f"must be at most {LARGEST} for an embedding table: encode its ids, or name it in `zch.fields`"
                raise InputError(f"`num_embeddings` (={each.num_embeddings}) of field {each.name!r} {rule}")
        owners = [each for each in self.fields if each.shares is None]
        return [self._table(each, num_rows.get(each.name, each.num_embeddings), embedding_dim) for each in owners]

    def _table(self, owner: Field, num_rows: int, embedding_dim: int) -> EmbeddingBagConfig:
        users = [each for each in self.fields if self.owner(each) is owner]
        pooling = {each.pooling for each in users if each.multi_valued} or {owner.pooling}
        if len(pooling) > 1:
            names = [each.name for each in users if each.multi_valued]
            raise InputError(f"`pooling` of the fields {names} must be the same, as they share a table")
        std = owner.init_std
        return EmbeddingBagConfig(
            name=_table_name(owner.name),
            feature_names=[each.name for each in users],
            num_embeddings=num_rows,
            embedding_dim=owner.embedding_dim or embedding_dim,
            pooling=_POOLING[pooling.pop()],
            init_fn=None if std is None else partial(nn.init.normal_, std=std),
        )

    def check_fits(self, embedding_bag_collection: HasEmbeddingBagConfigs, tasks: TaskForest) -> None:
        """Raises `InputError` unless a model with these tables and tasks can read this data."""
        num_ids = {field.name: field.num_embeddings for field in self.fields}
        for table in embedding_bag_collection.embedding_bag_configs():
            for feature in table.feature_names:
                if feature not in num_ids:
                    rule = f"must be a field of data set {self.name!r}: {list(num_ids)}"
                    raise InputError(f"feature {feature!r} of table {table.name!r} {rule}")
                if table.num_embeddings < num_ids[feature]:
                    rule = f"must be at least that of its field {feature!r} in data set {self.name!r}"
                    size = f"`num_embeddings` (={table.num_embeddings}) of table {table.name!r}"
                    raise InputError(f"{size} {rule} ({num_ids[feature]})")
        if not tasks.same_labels(self.tasks):
            rule = f"must be those of data set {self.name!r}, in the same order: {self.tasks}"
            raise InputError(f"`tasks` (={tasks}) {rule}")

    def save(self, directory: str | Path) -> None:
        """Writes ``schema.json`` into ``directory``."""
        content = {"version": FORMAT_VERSION, **asdict(self), "tasks": self.tasks.to_json()}
        write_whole(Path(directory) / SCHEMA_FILE, to_json(content, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, directory: str | Path) -> "Schema":
        """Reads ``schema.json`` from ``directory``. Raises `InputError` if the file is missing or wrong."""
        file = Path(directory) / SCHEMA_FILE
        if not file.is_file():
            raise InputError(f"{file}: no such file, so {str(directory)!r} is not a prepared data set")
        return cls.from_json(read_json(file), file)

    @classmethod
    def from_json(cls, content: dict[str, Any], file: object) -> "Schema":
        """Makes a schema of the content of ``file``. Raises `InputError` if it is wrong."""
        try:
            return cls._from_json(content)
        except KeyError as error:
            raise InputError(f"{file}: key {error} is missing") from error
        except InputError as error:
            raise InputError(f"{file}: {error}") from error
        except (TypeError, AttributeError) as error:
            raise InputError(f"{file}: a value is of the wrong kind ({error})") from error

    @classmethod
    def _from_json(cls, content: dict[str, Any]) -> "Schema":
        version, fields, tasks = content["version"], content["fields"], content["tasks"]
        if version not in (1, FORMAT_VERSION):
            raise InputError(f"`version` (={version!r}) must be {FORMAT_VERSION}, or 1, whose tasks are a chain")
        return cls(
            name=content["name"],
            fields=[
                Field(
                    item["name"],
                    item["num_embeddings"],
                    item["multi_valued"],
                    **{name: item[name] for name in _OPTIONAL if name in item},  # older files have none of them
                )
                for item in fields
            ],
            tasks=TaskChain(**tasks) if version == 1 else TaskForest.from_json(tasks),
            dense=content["dense"],
            group=content["group"],
            num_rows=content["num_rows"],
            notes=content["notes"],
            vocabulary_digest=content.get("vocabulary_digest"),
        )
