"""A declaration as the text of a Python file, one field a line."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from torchrec_mtl.data.table.declaration import Table
from torchrec_mtl.data.table.fields import AgeInDays
from torchrec_mtl.tasks import TaskForest

WIDTH = 100  # characters of a line
SPLIT = "split="  # in comments, no field's name


def declaration_text(table: Table, comments: Mapping[str, str], left_out: Sequence[str]) -> str:
    """Returns the text of a file that declares ``table``.

    Args:
        table: a table with one source and a split.
        comments: comments by the name of their field, and by `SPLIT`; one is left out if its line would be too long.
        left_out: columns that are not declared, each with the reason.
    """
    tasks = _tasks(table.tasks)
    kinds = {type(each).__name__ for each in (table, *table.fields, table.split)}
    kinds |= {"AgeInDays" for each in table.fields if isinstance(each.column, AgeInDays)}
    kinds |= {*re.findall(r"\bTask\w*(?=\()", tasks)}
    given = {name: getattr(table, name) for name in ("time", "time_unit", "group")}
    rest = [f"{name}={_quoted(value)}" for name, value in given.items() if value is not None]
    *more, last = _wrapped("], ", [*rest, f"split={_code(table.split)}"], ")")
    lines = [
        *_imports(sorted(kinds)),
        *_wrapped("TABLE = Table(", [_quoted(table.name), _quoted(str(table.source)), tasks, "fields=["], ""),
        *(_with_comment(f"    {_code(each)},", comments[each.name]) for each in table.fields),
        *more,
        _with_comment(last, comments[SPLIT]),
        *(_comment(f"left out: {', '.join(left_out)}") if left_out else []),
    ]
    return "\n".join(lines) + "\n"


def _tasks(tasks: TaskForest) -> str:
    if tasks.is_chain:
        return f"TaskChain([{', '.join(map(_quoted, tasks.names))}])"
    made = [_quoted(each.name) + (f", after={_quoted(each.after)}" if each.after else "") for each in tasks.tasks]
    return f"TaskForest({', '.join(f'Task({each})' for each in made)})"


def _code(made: Any) -> str:
    """A dataclass as Python, without defaults; what may be given by position is."""
    written = []
    for item in sorted(fields(made), key=lambda item: item.kw_only is True):
        value = getattr(made, item.name)
        if value != item.default:
            text = _quoted(value) if isinstance(value, str) else repr(value)
            text = _code(value) if isinstance(value, AgeInDays) else text
            written.append(f"{item.name}={text}" if item.kw_only else text)
    return f"{type(made).__name__}({', '.join(written)})"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _with_comment(code: str, comment: str) -> str:
    whole = f"{code}  # {comment}"
    return whole if comment and comment.isprintable() and len(whole) <= WIDTH else code


def _comment(text: str) -> list[str]:
    lines = [""]
    for word in "".join(each if each.isprintable() else "?" for each in text).split():
        if lines[-1] and len(lines[-1]) + len(word) > WIDTH - 3:
            lines.append("")
        lines[-1] += f" {word}"
    return [f"#{line}" for line in lines]


def _imports(names: Sequence[str]) -> list[str]:
    line = f"from torchrec_mtl import {', '.join(names)}"
    return [line] if len(line) <= WIDTH else _wrapped("from torchrec_mtl import (", names, ")")


def _wrapped(start: str, items: Sequence[str], end: str) -> list[str]:
    """Items between ``start`` and ``end`` in one line, or in several where it would be too long."""
    lines = [start]
    for number, item in enumerate(items, start=1):
        item += end if number == len(items) else ", "
        if len(lines[-1]) + len(item.rstrip()) > WIDTH:
            lines.append("    ")
        lines[-1] += item
    return [line.rstrip() for line in lines]
