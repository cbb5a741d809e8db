"""A declaration that cannot be prepared is refused before anything is read."""

from collections.abc import Callable
from typing import Any

import pytest

from torchrec_mtl.data.table import (
    AgeInDays,
    AnyId,
    Bins,
    ByHash,
    ByTime,
    Dense,
    Hashed,
    History,
    Integers,
    Table,
    TimeOf,
    Vocabulary,
)
from torchrec_mtl.errors import InputError
from torchrec_mtl.tasks import Task, TaskChain, TaskForest

TASKS = TaskChain(["click", "buy"])
SPLIT = ByTime("2026-11-08", "2026-11-09")


def table(*fields: Any, **changes: Any) -> Table:
    given = {"name": "shop", "source": "raw", "tasks": TASKS, "split": SPLIT, "time": "ts", "group": "user"} | changes
    name, source, tasks = (given.pop(each) for each in ("name", "source", "tasks"))
    return Table(name, source, tasks, fields or [Vocabulary("item")], **given)


WRONG: dict[str, tuple[Callable[[], object], str]] = {
    "a name of a folder": (lambda: table(name="a/b"), "`name` of a table"),
    "no tasks": (lambda: table(tasks=["click"]), r"`tasks` \(=\['click'\]\) must be of type TaskForest"),
    "no field": (lambda: table(Dense("age")), "`fields` of data set 'shop' must not be empty"),
    "names for fields": (lambda: table("item"), "must be of type list of DeclaredField"),
    "a field twice": (
        lambda: table(Vocabulary("item"), Hashed("item")),
        "'item' of table 'shop' must be declared once",
    ),
    "a label as a field": (lambda: table(Vocabulary("click")), "column 'click' of table 'shop' must be declared once"),
    "a weight as a field": (
        lambda: table(Hashed("w"), tasks=TaskForest(Task("click", weight_column="w"))),
        "column 'w' of data set 'shop' must have one role",
    ),
    "a mark as a field": (
        lambda: table(Dense("age"), Hashed("age_missing")),
        "'age_missing' .*declared once, not 2 times",
    ),
    "weights as a field": (
        lambda: table(Hashed("tags", weights="w"), Hashed("tags_weights")),
        "column 'tags_weights' of data set 'shop' must have one role",
    ),
    "the group's column as a field": (
        lambda: table(Vocabulary("user"), Hashed("user_group")),
        "field 'user_group' must have another name: the group's column has this one",
    ),
    "a field kept": (lambda: table(keep=["item"]), "`keep` must name further columns, each once, not 'item'"),
    "the time kept": (lambda: table(keep=["ts"]), "`keep` must name further columns, each once, not 'ts'"),
    "kept twice": (lambda: table(keep=["a", "a"]), "`keep` must name further columns, each once, not 'a'"),
    "no split": (lambda: table(split=None), "`split` must be given, or `source` must name the rows of"),
    "two kinds of splits": (
        lambda: table(source=dict.fromkeys(("train", "valid", "test"), "x")),
        "`split` must be given",
    ),
    "a split less": (lambda: table(source={"train": "x"}, split=None), r"`source` \(of \['train'\]\) must have"),
    "no time to split by": (lambda: table(time=None), "`time` must name the column by which rows are split"),
    "no time for an age": (
        lambda: table(Bins("age", column=AgeInDays("born")), time=None, split=ByHash("user")),
        "`time` must name the time column, which field 'age' needs",
    ),
    "an age as a key": (
        lambda: Vocabulary("age", column=AgeInDays("born")),
        "must be a column: a Vocabulary has no numbers",
    ),
    "no group for a history": (
        lambda: table(Vocabulary("item"), History("recent", "item"), group=None),
        "`group` must name a column, which history 'recent' needs",
    ),
    "a history of nothing": (lambda: table(Vocabulary("item"), History("r", "itm")), "the nearest is 'item'"),
    "a history of a history": (
        lambda: table(Vocabulary("item"), History("a", "item"), History("b", "a")),
        "field 'b' must use a field with a table, not 'a'",
    ),
    "a history of a dense number": (
        lambda: table(Hashed("i"), Dense("age"), History("b", "age")),
        "with a table, not 'age'",
    ),
    "a history of clicks that no task has": (
        lambda: table(Vocabulary("item"), History("a", "item", where="clik")),
        "'clik'",
    ),
    "a window of nothing": (
        lambda: History("a", "item", within="30"),
        r"`within` of field `a` \(='30'\) must be a time span",
    ),
    "a window of 0": (lambda: History("a", "item", within="0d"), "must be a time span such as '30d'"),
    "no length": (lambda: History("a", "item", last=0), "`last` of field `a` .*must be at least 1"),
    "a history with a column": (
        lambda: History("a", "item", column="b"),
        "a history has no `shares`, `weights` or `column`",
    ),
    "a history with a dimension": (
        lambda: table(Vocabulary("item"), History("a", "item", embedding_dim=8)),
        "field 'a' has no `embedding_dim`, `init_std` or `num_rows`: it shares a table",
    ),
    "a shared table of another kind": (
        lambda: table(Vocabulary("item"), Hashed("other", shares="item")),
        "field 'other' must be of the kind of 'item', a Vocabulary, not a Hashed",
    ),
    "buckets of two sizes": (
        lambda: table(Hashed("item", 10), Hashed("other", 20, shares="item")),
        r"`num_buckets` \(=20\) of field 'other' must be that of 'item', whose table it shares",
    ),
    "bins of another number": (
        lambda: table(Bins("price", 10), Bins("other", 20, shares="price")),
        r"`num_bins` \(=20\) of field 'other' must be that of 'price', whose table it shares",
    ),
    "hours and weekdays": (
        lambda: table(TimeOf("a", "hour"), TimeOf("b", "weekday", shares="a")),
        r"`part` \(='weekday'\) of field 'b' must be that of 'a', whose table it shares",
    ),
    "an average of weighted ids": (
        lambda: table(Vocabulary("tags", weights="w", pooling="mean")),
        "`pooling` .*of field 'tags' must be 'sum'",
    ),
    "no separator": (lambda: Vocabulary("tags", separator=""), "`separator` .*must not be empty"),
    "an id for missing that there is not": (lambda: Integers("day", 7, missing=7), "`missing` .*below `num_ids`"),
    "no such part of a time": (lambda: TimeOf("a", "minute"), "`part` of field `a` .*must be one of"),
    "splits in one": (lambda: ByTime("2026-11-08", "2026-11-08"), "or splits overlap"),
    "zones that turn the splits round": (
        lambda: ByTime("2026-11-08T00:00", "2026-11-08T01:00+02:00"),
        "`test_from` .*must be after",
    ),
    "no time": (lambda: ByTime("tomorrow", "2026-11-08"), r"`valid_from` \(='tomorrow'\) must be a time"),
    "shares of all": (lambda: ByHash("user", 0.5, 0.5), "must be above 0, and less than 1 together"),
    "no such format": (lambda: table(format="xml"), "`format` .*must be one of"),
    "rows for no bucket": (lambda: AnyId("item", num_rows=1), "`num_rows` of field `item` .*must be at least 2"),
    "tables of two sizes": (
        lambda: table(AnyId("item", num_rows=64), AnyId("other", num_rows=32, shares="item")),
        r"`num_rows` \(=32\) of field 'other' must be that of 'item', whose table it shares",
    ),
    "no such unit": (lambda: table(time_unit="h"), "`time_unit` .*must be one of"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_declaration_is_refused_in_one_sentence(case: str) -> None:
    make, message = WRONG[case]
    with pytest.raises(InputError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_shared_table_may_have_another_column_and_form() -> None:
    shared = table(
        Vocabulary("item", min_count=5, embedding_dim=8, pooling="mean"),
        Vocabulary("bought", shares="item", column="purchases", separator="|", pooling="mean"),
        Hashed("city", 100),
        Hashed("born_in", 100, shares="city"),
        AnyId("user", num_rows=64),
        AnyId("friend", num_rows=64, shares="user"),
    )
    assert [field.shares for field in shared.schema(dict.fromkeys(shared.by_name, 9), []).fields] == [
        None,
        "item",
        None,
        "city",
        None,
        "user",
    ]
