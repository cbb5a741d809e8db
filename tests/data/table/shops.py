"""Random raw tables with every kind of column, in every format, and what their declaration must encode."""

import json
from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq

from torchrec_mtl.data.table import (
    AgeInDays,
    AnyId,
    Bins,
    ByTime,
    Dense,
    Hashed,
    History,
    Integers,
    LogRound,
    Table,
    TimeOf,
    Vocabulary,
)
from torchrec_mtl.tasks import TaskChain

START = datetime(2026, 11, 1)
VALID_FROM, TEST_FROM = START + timedelta(days=6), START + timedelta(days=8)
LISTS = ("tags", "tag_weights")
FORMATS = ("parquet", "csv", "tsv", "arrow", "jsonl")


@dataclass
class Shop:
    """Rows of a raw table, and the file or folder they are written to."""

    rows: list[dict[str, Any]]
    path: Path
    format: str

    def splits(self) -> list[list[dict[str, Any]]]:
        """The rows of train, valid and test."""
        edges = [datetime.min, VALID_FROM, TEST_FROM, datetime.max]
        return [[row for row in self.rows if low <= row["ts"] < high] for low, high in zip(edges, edges[1:])]  # noqa: B905, RUF007


def table(source: object, format: str = "parquet") -> Table:
    """A declaration with a field of every kind."""
    separator = "|" if format in ("csv", "tsv") else None
    fields = [
        Vocabulary("user", min_count=2),
        Vocabulary("item"),
        Vocabulary("seller", max_size=3),
        Vocabulary("tags", weights="tag_weights", separator=separator),
        Hashed("city", 50),
        AnyId("any_city", column="city", num_rows=64),
        Integers("weekday", 7, missing=6),
        Bins("price", 4),
        Bins("account_age", 3, column=AgeInDays("created")),
        LogRound("visits"),
        TimeOf("hour", "hour", column="ts"),
        TimeOf("day", "weekday", column="created"),
        Dense("age", clip=(0, 1)),
        Dense("height", mark_missing=False),
        History("recent", "item", last=3, within="2d", separator=separator),
        History("clicked", "city", last=2, where="click", separator=separator),
        History("any_recent", "any_city", last=2, separator=separator),
    ]
    split = ByTime(VALID_FROM.isoformat(), TEST_FROM.isoformat())
    tasks = TaskChain(["click", "buy"])
    return Table("shop", str(source), tasks, fields, split=split, time="ts", group="user", keep=["note"], format=format)


def draw(generator: np.random.Generator, num_rows: int, integer_keys: bool, missing: float) -> list[dict[str, Any]]:
    """Random rows, each value missing with a probability; users and labels are never missing."""

    def key(prefix: str, number: int) -> int | str:
        value = int(generator.integers(number))
        return value if integer_keys else f"{prefix}{value:03}"

    def maybe(value: Any) -> Any:
        return None if generator.random() < missing else value

    rows = []
    for number in range(num_rows):
        hours = int(generator.integers(10 * 24 // 3)) * 3 if number > 2 else (0, 6.5 * 24, 9 * 24)[number]
        tags = [maybe(key("tag", 5)) for _ in range(generator.integers(4))]
        click = int(generator.random() < 0.5)
        row = {
            "user": key("u", 4),
            "item": maybe(key("item", 9)),
            "seller": maybe(key("seller", 6)),
            "tags": maybe(tags),
            "city": maybe(key("Düsseldorf ", 9)),
            "weekday": maybe(int(generator.integers(7))),
            "price": maybe(round(float(generator.normal(5, 20)), 3)),
            "created": maybe(START - timedelta(minutes=int(generator.integers(10**6)))),
            "visits": maybe(int(generator.integers(-20, 1000))),
            "age": maybe(float(generator.integers(10, 90))),
            "height": maybe(1.7),
            "ts": START + timedelta(hours=hours),
            "note": f"row {number}",
            "click": click,
            "buy": click * int(generator.random() < 0.5),
        }
        weights = [round(float(generator.random()), 3) for _ in tags]
        rows.append({**row, "tag_weights": None if row["tags"] is None else weights})
    return rows


def write(folder: Path, rows: list[dict[str, Any]], format: str, num_parts: int = 1) -> Shop:
    """Writes rows as a folder of parts, as Spark does."""
    folder.mkdir()
    (folder / "_SUCCESS").touch()
    keys = pa.int64() if isinstance(rows[0]["user"], int) else pa.string()
    for number, part in enumerate(np.array_split(np.arange(len(rows)), num_parts)):
        file = folder / f"part-{number:05}.{format}"
        (folder / f".{file.name}.crc").write_bytes(b"crc")
        write_file(file, [rows[row] for row in part], format, keys)
    return Shop(rows, folder, format)


def write_file(file: Path, rows: list[dict[str, Any]], format: str, keys: pa.DataType) -> None:
    """Writes rows in one of the formats."""
    if format == "jsonl":
        file.write_text("".join(json.dumps(row, default=_iso) + "\n" for row in rows), encoding="utf-8")
        return
    types = {"tags": pa.list_(keys), "tag_weights": pa.list_(pa.float64())}
    types |= dict.fromkeys(("user", "item", "seller", "city"), keys) | dict.fromkeys(
        ("ts", "created"), pa.timestamp("us")
    )
    types |= dict.fromkeys(("weekday", "visits"), pa.int32()) | dict.fromkeys(("price", "age", "height"), pa.float64())
    names = dict.fromkeys(name for row in rows for name in row)
    types = {name: kind for name, kind in types.items() if name in LISTS or not isinstance(rows[0][name], str)}
    arrays = {name: pa.array([row[name] for row in rows], types.get(name)) for name in names}
    if format in ("csv", "tsv"):
        for name in set(LISTS) & set(names):
            arrays[name] = pa.array([joined(row[name]) for row in rows], pa.string())
        pa.csv.write_csv(pa.table(arrays), file, pa.csv.WriteOptions(delimiter="," if format == "csv" else "\t"))
    elif format == "arrow":
        pa.feather.write_feather(pa.table(arrays), file, compression="zstd", chunksize=7)
    else:
        pq.write_table(pa.table(arrays), file, row_group_size=7)


def _iso(time: datetime) -> str:
    return time.isoformat()


def joined(values: list[Any] | None) -> str | None:
    return "|".join("" if value is None else str(value) for value in values) if values else None


def as_text(row: dict[str, Any]) -> dict[str, Any]:
    """The row with keys as CSV files have them: as text, where no text stands for a list of one missing value."""
    text = {name: None if row[name] is None else str(row[name]) for name in ("user", "item", "seller", "city")}
    text |= {name: text[name] or "?" for name in ("item", "city")}
    tags = [str(tag) for tag in row["tags"] or [] if tag is not None]
    return {**row, **text, "tags": tags, "tag_weights": (row["tag_weights"] or [])[: len(tags)]}


def replace_fields(table: Table, fields: list[Any]) -> Table:
    given = {name: getattr(table, name) for name in ("split", "time", "group", "keep", "format")}
    return Table(table.name, table.source, table.tasks, fields, **given)


def histories(rows: list[dict[str, Any]], *, of: str, last: int, within: timedelta | None, where: str | None) -> list:
    """The last values of each row's user strictly before it, by looking at all pairs of rows."""
    lists = []
    for row in rows:
        earlier = [
            each
            for each in sorted(rows, key=lambda each: each["ts"])
            if each["user"] == row["user"]
            and each["ts"] < row["ts"]
            and (within is None or each["ts"] >= row["ts"] - within)
            and (where is None or each[where] == 1)
        ]
        lists.append([each[of] for each in earlier][-last:])
    return lists


def with_histories(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, with the histories of `table` as new rows bring them."""
    recent = histories(rows, of="item", last=3, within=timedelta(days=2), where=None)
    clicked = histories(rows, of="city", last=2, within=None, where="click")
    cities = histories(rows, of="city", last=2, within=None, where=None)
    lists = zip(recent, clicked, cities, strict=True)
    return [{**row, "recent": a, "clicked": b, "any_recent": c} for row, (a, b, c) in zip(rows, lists, strict=True)]


class Oracle:
    """What `table` must encode, a few lines for each kind, fitted on the training rows alone."""

    def __init__(self, train: list[dict[str, Any]]) -> None:
        self.vocabularies = {
            "user": _most_frequent([row["user"] for row in train], min_count=2),
            "item": _most_frequent([row["item"] for row in train]),
            "seller": _most_frequent([row["seller"] for row in train])[:3],
            "tags": _most_frequent([tag for row in train for tag in row["tags"] or []]),
        }
        self.edges = {
            "price": _edges([row["price"] for row in train], 4),
            "account_age": _edges([_age(row) for row in train], 3),
        }
        rounds = [_log_round(row["visits"]) for row in train if row["visits"] is not None]
        self.visits = (min(rounds, default=0), max(rounds, default=0))
        self.ages = np.array([row["age"] for row in train if row["age"] is not None])

    def id(self, field: str, value: Any) -> int:
        if value is None:
            return {"weekday": 6, "any_city": 2**63 - 2}.get(field, 0)
        if field in self.vocabularies:
            known = self.vocabularies[field]
            return known.index(value) + 2 if value in known else 1
        if field in self.edges:
            return 1 + sum(edge < _rounded(value) for edge in self.edges[field])
        if field == "visits":
            return min(max(_log_round(value), self.visits[0]), self.visits[1]) - self.visits[0] + 1
        if field == "city":
            return _hash(value) % 50 + 1
        if field == "any_city":
            return value if isinstance(value, int) else _hash(value) % (2**63 - 2)
        return {"weekday": lambda: value, "hour": lambda: value.hour + 1, "day": lambda: value.weekday() + 1}[field]()

    def encode(self, row: dict[str, Any]) -> dict[str, Any]:
        """The encoded row, given one of `with_histories`."""
        raw = {**row, "hour": row["ts"], "day": row["created"], "account_age": _age(row), "any_city": row["city"]}
        single = (
            "user",
            "item",
            "seller",
            "city",
            "weekday",
            "price",
            "account_age",
            "visits",
            "hour",
            "day",
            "any_city",
        )
        encoded: dict[str, Any] = {field: self.id(field, raw[field]) for field in single}
        lists = {"tags": ("tags", row["tags"]), "recent": ("item", row["recent"]), "clicked": ("city", row["clicked"])}
        lists["any_recent"] = ("any_city", row["any_recent"])
        for name, (owner, values) in lists.items():
            encoded[name] = [self.id(owner, value) for value in values or []]
        encoded["tags_weights"] = [np.float32(weight) for weight in row["tag_weights"] or []]
        missing = row["age"] is None
        spread = self.ages.std() if len(self.ages) and self.ages.std() > 0 else 1
        encoded["age"] = (
            0
            if missing or not len(self.ages)
            else (np.clip(row["age"], self.ages.min(), self.ages.max()) - self.ages.mean()) / spread
        )
        return {**encoded, "age_missing": float(missing), "height": 0.0}


def _most_frequent(values: list[Any], min_count: int = 1) -> list[Any]:
    counts = Counter(value for value in values if value is not None)
    return [value for value in sorted(counts, key=lambda value: (-counts[value], value)) if counts[value] >= min_count]


def _rounded(number: float) -> float:
    """To 16 significant bits."""
    mantissa, exponent = np.frexp(number)
    return float(np.ldexp(np.rint(mantissa * 2**16), exponent - 16))


def _edges(values: list[float | None], num_bins: int) -> list[float]:
    known = sorted(_rounded(value) for value in values if value is not None)
    if not known:
        return []
    quantiles = np.quantile(known, np.arange(1, num_bins) / num_bins, method="inverted_cdf").tolist()
    return sorted({edge for edge in quantiles if edge < known[-1]})


def _age(row: dict[str, Any]) -> float | None:
    return None if row["created"] is None else (row["ts"] - row["created"]) / timedelta(days=1)


def _log_round(value: float) -> int:
    return int(np.rint(np.sign(value) * np.log2(1 + abs(value))))


def _mix(value: int) -> int:
    """SplitMix64's last steps."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


def _hash(value: int | str) -> int:
    if isinstance(value, int):
        return _mix(value % 2**64)
    factors = [_mix((place + 0x9E3779B97F4A7C15) % 2**64) for place in range(len(value.encode()))]
    return _mix(sum((byte + 1) * factor for byte, factor in zip(value.encode(), factors, strict=True)) % 2**64)
