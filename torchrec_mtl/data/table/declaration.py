"""The declaration of a table of raw rows: where it is, its labels, its fields, its splits."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from datetime import datetime, timezone

from torchrec_mtl.argument_types import check_fields
from torchrec_mtl.data.schema import SPLITS, Field, Schema
from torchrec_mtl.data.table.any_id import AnyId
from torchrec_mtl.data.table.columns import TIME_UNITS
from torchrec_mtl.data.table.delays import Delay, check_delays, prepared_tasks
from torchrec_mtl.data.table.fields import AgeInDays, DeclaredField, IdField
from torchrec_mtl.data.table.ids import History
from torchrec_mtl.data.table.numbers import Dense
from torchrec_mtl.errors import InputError, check_choice, check_file_name, not_one_of
from torchrec_mtl.tasks import TaskForest

FORMATS = ("parquet", "csv", "tsv", "arrow", "jsonl")


@dataclass(frozen=True)
class ByTime:
    """Splits rows by time: train before ``valid_from``, valid before ``test_from``, test from then on.

    Args:
        valid_from, test_from: times in ISO format, UTC unless they say otherwise: "2026-11-01" or "2026-11-01T08:00".

    Raises:
        InputError: if one is not a time, or ``test_from`` is not after ``valid_from``.

    Example::

        >>> ByTime("2026-11-08", "2026-11-01")
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: `test_from` (='2026-11-01') must be after `valid_from` (='2026-11-08'), or splits overlap
    """  # noqa: E501  (the message)

    valid_from: str
    test_from: str

    def __post_init__(self) -> None:
        check_fields(self)
        first, second = self.edges
        if second <= first:
            rule = f"must be after `valid_from` (={self.valid_from!r}), or splits overlap"
            raise InputError(f"`test_from` (={self.test_from!r}) {rule}")

    @property
    def edges(self) -> tuple[int, int]:
        """Both times in microseconds since 1970, UTC."""
        return _microseconds("valid_from", self.valid_from), _microseconds("test_from", self.test_from)


@dataclass(frozen=True)
class ByHash:
    """Splits rows by a hash of a column, so that all rows with one value are in one split.

    Args:
        column: the column, of strings or integers.
        valid, test: shares of the column's values; train has the rest.

    Raises:
        InputError: if a share is not above 0, or nothing is left for train.
    """

    column: str
    valid: float = 0.1
    test: float = 0.1

    def __post_init__(self) -> None:
        check_fields(self)
        if not (self.valid > 0 and self.test > 0 and self.valid + self.test < 1):
            shares = f"`valid` (={self.valid}) and `test` (={self.test})"
            raise InputError(f"{shares} must be above 0, and less than 1 together")


@dataclass(frozen=True)
class ByColumn:
    """Splits rows as a column says, whose values are "train", "valid" and "test".

    Args:
        column: the column.
    """

    column: str

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Table:
    """A table of raw rows, declared: one line a field.

    Args:
        name: name of the data set.
        source: file, glob, or folder of parts (Spark's, with hive partitions as columns), local or a URI (``s3://...``);
            several of them; or one for each of "train", "valid" and "test".
        tasks: the funnel, with its label columns.
        fields: the fields: see `Vocabulary`, `Hashed`, `AnyId`, `Integers`, `Bins`, `LogRound`, `TimeOf`, `Dense`,
            `History`.
        split: how rows are split: `ByTime`, `ByHash` or `ByColumn`; None if ``source`` names the splits.
        time: column with the time of a row.
        time_unit: unit of times that are integers: "s", "ms", "us" or "ns" since 1970.
        group: column whose values group rows for GAUC and for histories: a user, a session.
        keep: further columns that the prepared files have, unchanged.
        format: "parquet", "csv", "tsv", "arrow" or "jsonl"; by default, file names say it.
        delays: the labels that arrive late, see `Delay`.
        as_of: time in ISO format from which the delayed labels of training rows are seen; by default the largest time
            in the data. With `ByTime`, ``valid_from`` is the time at which a model could have been trained.

    Raises:
        InputError: if an argument is of the wrong kind, a name is used twice, or one refers to what is not there.

    Example::

        >>> from torchrec_mtl.data.table import ByTime, Dense, History, Vocabulary
        >>> from torchrec_mtl.tasks import TaskChain
        >>> table = Table("shop", "log/*.parquet", TaskChain(["click", "buy"]), time="ts", group="user", fields=[
        ...     Vocabulary("user", min_count=5),
        ...     Vocabulary("item", min_count=5),
        ...     History("recent", "item", last=20, within="30d"),
        ...     Dense("price"),
        ... ], split=ByTime("2026-11-08", "2026-11-09"))
        >>> table.columns
        ('ts', 'user', 'click', 'buy', 'item', 'price')
    """

    name: str
    source: str | Sequence[str] | Mapping[str, str | Sequence[str]]
    tasks: TaskForest
    fields: Sequence[DeclaredField]
    _: KW_ONLY
    split: ByTime | ByHash | ByColumn | None = None
    time: str | None = None
    time_unit: str | None = None
    group: str | None = None
    keep: Sequence[str] = ()
    format: str | None = None
    delays: Sequence[Delay] = ()
    as_of: str | None = None
    by_name: dict[str, DeclaredField] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_file_name("`name` of a table", self.name)
        object.__setattr__(self, "by_name", {})
        check_fields(self)
        object.__setattr__(self, "fields", tuple(self.fields))
        object.__setattr__(self, "keep", tuple(self.keep))
        check_delays(self.delays, self.tasks)
        object.__setattr__(self, "delays", tuple(self.delays))
        object.__setattr__(self, "by_name", {each.name: each for each in self.fields})
        for name, count in Counter(self.names).items():
            if count > 1:
                raise InputError(f"column {name!r} of table {self.name!r} must be declared once, not {count} times")
        if self.format is not None:
            check_choice("format", self.format, FORMATS)
        if self.time_unit is not None:
            check_choice("time_unit", self.time_unit, list(TIME_UNITS))
        if isinstance(self.source, Mapping) != (self.split is None):
            raise InputError("`split` must be given, or `source` must name the rows of 'train', 'valid' and 'test'")
        if isinstance(self.source, Mapping) and sorted(self.source) != sorted(SPLITS):
            raise InputError(f"`source` (of {list(self.source)}) must have {list(SPLITS)}")
        if isinstance(self.split, ByTime) and self.time is None:
            raise InputError("`time` must name the column by which rows are split")
        if self.delays and self.time is None:
            raise InputError("`time` must name the column from which delays are counted")
        if self.as_of is not None and not self.delays:
            raise InputError(f"`as_of` (={self.as_of!r}) must not be given without `delays`")
        if self.as_of is not None:
            _microseconds("as_of", self.as_of)
        for each in self.fields:
            self._check_references(each)
        schema = self.schema(dict.fromkeys(self.by_name, 1), [each.name for each in self.fields])
        prepared = [*schema.columns, *((self.time,) if self.time else ())]
        for name in self.keep:
            if name in prepared or self.keep.count(name) > 1:
                raise InputError(f"`keep` must name further columns, each once, not {name!r}")
        if self.group in self.names and self.group_column in self.names:
            raise InputError(f"field {self.group_column!r} must have another name: the group's column has this one")

    def _check_references(self, declared: DeclaredField) -> None:
        if isinstance(declared.column, AgeInDays) and self.time is None:
            raise InputError(f"`time` must name the time column, which field {declared.name!r} needs")
        if not isinstance(declared, IdField):
            return
        owner = declared.of if isinstance(declared, History) else declared.shares
        if owner is not None:
            found = self.by_name.get(owner)
            if found is None:
                raise InputError(f"field {declared.name!r}: {not_one_of('field', owner, self.by_name)}")
            if not isinstance(found, IdField) or isinstance(found, History) or found.shares is not None:
                raise InputError(f"field {declared.name!r} must use a field with a table, not {owner!r}")
            if not isinstance(declared, History) and type(found) is not type(declared):
                kinds = f"{type(found).__name__}, not a {type(declared).__name__}"
                raise InputError(f"field {declared.name!r} must be of the kind of {owner!r}, a {kinds}")
            if not isinstance(declared, History):
                for own in fields(declared):  # of the kind: they are the other field's
                    given, others = getattr(declared, own.name), getattr(found, own.name)
                    if own.name not in IdField.__dataclass_fields__ and given not in (own.default, others):
                        what = f"`{own.name}` (={given!r}) of field {declared.name!r}"
                        raise InputError(f"{what} must be that of {owner!r}, whose table it shares, or left out")
        if isinstance(declared, History):
            for argument in ("time", "group"):
                if getattr(self, argument) is None:
                    raise InputError(f"`{argument}` must name a column, which history {declared.name!r} needs")
            if declared.where is not None:
                if not self.tasks.tasks[self.tasks.index(declared.where)].is_binary:
                    rule = f"must not list rows by {declared.where!r}, which is a value and does not happen"
                    raise InputError(f"history {declared.name!r} {rule}")
                if declared.where in [each.task for each in self.delays]:
                    rule = f"must not list rows by {declared.where!r}, which is not known yet at their time"
                    raise InputError(f"history {declared.name!r} {rule}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the prepared columns, except the group, the time and what is kept."""
        dense = [column for each in self.fields if isinstance(each, Dense) for column in each.dense]
        added = [task.weight_column for task in self.prepared_tasks.tasks if task not in self.tasks.tasks]
        labels = self.prepared_tasks.label_columns
        return (*(each.name for each in self.id_fields), *dense, *labels, *(column for column in added if column))

    @property
    def prepared_tasks(self) -> TaskForest:
        """The tasks of the prepared data: those of the table, and what its delays add."""
        return prepared_tasks(self.tasks, self.delays) if self.delays else self.tasks

    @property
    def as_of_us(self) -> int | None:
        """``as_of`` in microseconds since 1970, UTC."""
        return None if self.as_of is None else _microseconds("as_of", self.as_of)

    @property
    def id_fields(self) -> tuple[IdField, ...]:
        """The fields with ids."""
        return tuple(each for each in self.fields if isinstance(each, IdField))

    @property
    def dense_fields(self) -> tuple[Dense, ...]:
        """The fields of numbers that get no ids."""
        return tuple(each for each in self.fields if isinstance(each, Dense))

    @property
    def histories(self) -> tuple[History, ...]:
        """The fields that list earlier rows."""
        return tuple(each for each in self.fields if isinstance(each, History))

    @property
    def needs_time(self) -> bool:
        """Whether a field is encoded by the row's time."""
        return any(isinstance(each.column, AgeInDays) for each in self.fields)

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns that are read."""
        weights = (column for column in self.tasks.weight_columns if column)
        key = (self.split.column,) if isinstance(self.split, ByHash | ByColumn) else ()
        given = (column for column in (self.time, self.group) if column)
        read = (column for each in self.fields if not isinstance(each, History) for column in each.columns)
        times = (each.time for each in self.delays)
        return tuple(dict.fromkeys((*given, *key, *self.tasks.label_columns, *weights, *times, *read, *self.keep)))

    @property
    def group_column(self) -> str | None:
        """The name of the prepared column of groups: that of the raw column, unless a field has it."""
        return f"{self.group}_group" if self.group in self.names else self.group

    def schema(self, num_embeddings: Mapping[str, int], multi_valued: Collection[str]) -> Schema:
        """Returns the schema of the prepared data set, given numbers of ids, and the names of the fields with lists."""
        of_tables = [
            Field(
                each.name,
                num_embeddings[each.name],
                each.name in multi_valued,
                weight_column(each.name) if each.weights else None,
                shares=None if self.owner(each) is each else self.owner(each).name,
                embedding_dim=each.embedding_dim,
                pooling=each.pooling,
                init_std=each.init_std,
                num_rows=each.num_rows if isinstance(each, AnyId) and self.owner(each) is each else None,
            )
            for each in self.id_fields
        ]
        dense = [column for each in self.dense_fields for column in each.dense]
        return Schema(self.name, of_tables, self.prepared_tasks, dense=dense, group=self.group_column)

    def owner(self, declared: IdField) -> IdField:
        """Returns the field whose encoder and table ``declared`` uses, which may be itself."""
        name = declared.of if isinstance(declared, History) else declared.shares
        found = declared if name is None else self.by_name[name]
        assert isinstance(found, IdField)
        return found


def weight_column(name: str) -> str:
    """The name of the prepared column with the weights of a field's ids."""
    return f"{name}_weights"


def _microseconds(argument: str, text: str) -> int:
    try:
        time = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise InputError(f"`{argument}` (={text!r}) must be a time such as '2026-11-01'") from None
    time = time.replace(tzinfo=timezone.utc) if time.tzinfo is None else time
    return round(time.timestamp() * 10**6)
