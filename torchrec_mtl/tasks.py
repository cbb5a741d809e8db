"""The funnel: tasks that happen or do not, some only after another, and values at its ends."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torchrec_mtl.argument_types import check_type
from torchrec_mtl.errors import InputError, check_file_name, not_one_of
from torchrec_mtl.kinds import Binary, Kind, kind_of


@dataclass(frozen=True, init=False)
class Task:
    """An event that happens or does not, or a value, with the data columns that say so.

    Args:
        name: name of the task.
        after: name of the task that this one needs: the label of this task is 1 only where the label of ``after`` is 1;
            the label of a value counts only there. None if this task needs no other.
        label_column: data column of the label; the task's name by default.
        weight_column: data column of the sample weight; by default there is none, and every weight is 1. A weight of 0
            masks the label, which is the way to mark it as missing.
        kind: what the label is; see `torchrec_mtl.kinds`. By default, the task happens or does not.

    Raises:
        InputError: if a name is not a non-empty string, or ``kind`` is no `Kind`.

    Example::

        >>> from torchrec_mtl import ZILN
        >>> Task("buy", after="click").label_column, Task("spend", after="buy", kind=ZILN()).is_binary
        ('buy', False)
    """

    name: str
    after: str | None
    label_column: str
    weight_column: str | None
    kind: Kind

    def __init__(
        self,
        name: str,
        *,
        after: str | None = None,
        label_column: str | None = None,
        weight_column: str | None = None,
        kind: Kind = Binary(),
    ) -> None:
        check_type("kind", kind, Kind)
        label_column = name if label_column is None else label_column
        given = {"name": name, "label_column": label_column, "after": after, "weight_column": weight_column}
        for argument, value in given.items():
            if not (isinstance(value, str) and value) and not (
                value is None and argument in ("after", "weight_column")
            ):
                raise InputError(f"`{argument}` (={value!r}) of a task must be a non-empty string")
        check_file_name("`name` of a task", name)
        object.__setattr__(self, "kind", kind)
        for field, value in given.items():
            object.__setattr__(self, field, value)

    @property
    def is_binary(self) -> bool:
        """Whether the task happens or does not; otherwise it is a value."""
        return isinstance(self.kind, Binary)


@dataclass(frozen=True, init=False)
class TaskForest:
    """Tasks and the task that each one needs: a chain, a tree, several trees, or tasks that are independent.

    Everything with one column per task (labels, weights, logits; all ``[B, T]``) is in the order of ``tasks``. Two
    tasks that need the same task do not exclude each other.

    Tasks that are values come last. Labels and weights have one column for each of them too; logits have as many as
    its kind has outputs, ``[B, L]``. So the first columns of everything are those of ``funnel``.

    Args:
        tasks: one or more tasks, each after the task it needs.

    Raises:
        InputError: if there is no task, a name or a label column occurs twice, a task comes before the task it
            needs, or a value comes before a task that happens or does not.

    Example::

        >>> tasks = TaskForest(Task("click"), Task("like", after="click"), Task("buy", after="click"))
        >>> len(tasks), tasks.index("like"), list(tasks)
        (3, 1, ['click', 'like', 'buy'])
        >>> tasks.parents, tasks.edges
        ((None, 0, 0), ((0, 1), (0, 2)))
        >>> tasks.spaces("buy"), tasks.spaces("click")
        (('impressions', 'after click'), ('impressions',))
    """

    tasks: tuple[Task, ...]

    def __init__(self, *tasks: Task) -> None:
        if not tasks or not all(isinstance(task, Task) for task in tasks):
            raise InputError(f"`tasks` (={list(tasks)}) must be at least one `Task`")
        object.__setattr__(self, "tasks", tasks)
        for field, values in {"name": self.names, "label_column": self.label_columns}.items():
            for value in values:
                if values.count(value) > 1:
                    raise InputError(f"`{field}` (={value!r}) must not be that of two tasks")
        for place, task in enumerate(tasks):
            if task.after is not None and task.after not in self.names[:place]:
                raise InputError(
                    f"`after` (={task.after!r}) of task {task.name!r} must be a task given before it: "
                    f"{list(self.names[:place])}"
                )
            if task.after is not None and not tasks[self.names.index(task.after)].is_binary:
                raise InputError(f"`after` (={task.after!r}) of task {task.name!r} must happen or not, not be a value")
            if task.is_binary and place and not tasks[place - 1].is_binary:
                rule = f"must be given after all tasks that happen or not, such as {task.name!r}"
                raise InputError(f"`tasks`: {tasks[place - 1].name!r}, a value, {rule}")

    @property
    def funnel(self) -> "TaskForest":
        """The tasks that happen or do not; of values alone, a forest without tasks.

        Example::

            >>> from torchrec_mtl import ZILN
            >>> tasks = TaskForest(Task("click"), Task("buy", after="click"), Task("spend", after="buy", kind=ZILN()))
            >>> print(tasks, "|", tasks.funnel)
            click -> buy -> spend | click -> buy
            >>> tasks.outputs
            (slice(0, 1, None), slice(1, 2, None), slice(2, 5, None))
        """
        if not self.values:
            return self
        found = object.__new__(TaskForest)
        object.__setattr__(found, "tasks", tuple(task for task in self.tasks if task.is_binary))
        return found

    @property
    def values(self) -> tuple[Task, ...]:
        """The tasks that are values, which come last."""
        return tuple(task for task in self.tasks if not task.is_binary)

    @property
    def outputs(self) -> tuple[slice, ...]:
        """The columns of each task in the logits, ``[B, L]``."""
        ends = itertools.accumulate(task.kind.num_outputs for task in self.tasks)
        return tuple(slice(end - task.kind.num_outputs, end) for task, end in zip(self.tasks, ends, strict=True))

    @property
    def num_outputs(self) -> int:
        """The number of columns of the logits, ``L``."""
        return sum(task.kind.num_outputs for task in self.tasks)

    def to_json(self) -> list[dict[str, Any]]:
        """The fields of each task, for a file; without the kind where the task happens or does not."""
        return [{k: v for k, v in asdict(t).items() if not (k == "kind" and t.is_binary)} for t in self.tasks]

    @classmethod
    def from_json(cls, content: Sequence[Mapping[str, Any]]) -> "TaskForest":
        """The forest that `to_json` wrote."""
        of_kinds = [{"kind": kind_of(task["kind"])} if "kind" in task else {} for task in content]
        return cls(*(Task(**{**task, **kind}) for task, kind in zip(content, of_kinds, strict=True)))

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tasks."""
        return tuple(task.name for task in self.tasks)

    @property
    def label_columns(self) -> tuple[str, ...]:
        """Data column of each task's label."""
        return tuple(task.label_column for task in self.tasks)

    @property
    def weight_columns(self) -> tuple[str | None, ...]:
        """Data column of each task's weight, None if every weight is 1."""
        return tuple(task.weight_column for task in self.tasks)

    @property
    def parents(self) -> tuple[int | None, ...]:
        """Position of the task that each task needs, None if it needs none."""
        return tuple(None if task.after is None else self.names.index(task.after) for task in self.tasks)

    @property
    def edges(self) -> tuple[tuple[int, int], ...]:
        """Positions ``(parent, child)`` for each task that needs another, in the order of the tasks."""
        return tuple((parent, child) for child, parent in enumerate(self.parents) if parent is not None)

    def ancestors(self, task: int) -> tuple[int, ...]:
        """Returns the positions of all tasks that the task at position ``task`` needs, nearest first."""
        parent = self.parents[task]
        return () if parent is None else (parent, *self.ancestors(parent))

    @property
    def is_chain(self) -> bool:
        """Whether each task except the first needs the previous one."""
        return self.parents == (None, *range(len(self) - 1))

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __str__(self) -> str:
        """Shows which task comes after which, for example ``click -> (like, buy -> return)``."""
        return ", ".join(self._branches(None))

    def _branches(self, parent: int | None) -> list[str]:
        """Describes each child of ``parent`` with everything after it."""
        branches = []
        for task, name in enumerate(self.names):
            if self.parents[task] == parent:
                after = self._branches(task)
                following = f"({', '.join(after)})" if len(after) > 1 else "".join(after)
                branches.append(f"{name} -> {following}" if after else name)
        return branches

    def index(self, name: str) -> int:
        """Returns the position of the task ``name``."""
        if name not in self.names:
            raise InputError(not_one_of("task", name, self.names))
        return self.names.index(name)

    def spaces(self, name: str) -> tuple[str, ...]:
        """Returns the sample spaces in which metrics of task ``name`` can be measured, the entire space first.

        ``"impressions"`` is every row; ``"after X"`` is the rows where ``X``, the task that ``name`` needs, happened.
        """
        after = self.tasks[self.index(name)].after
        return ("impressions",) if after is None else ("impressions", f"after {after}")

    def counted(self, task: int, happened: Any, known: Any) -> Any:
        """Returns the rows ``[N]`` in which the label of the task at position ``task`` counts.

        Args:
            task: position of the task.
            happened: whether each task happened, an array or a tensor of bool, ``[N, T]``.
            known: whether each label is known, ``[N, T]``. The label of a value counts only where it is known that the
                task before it happened.
        """
        parent = self.parents[task]
        if parent is None or self.tasks[task].is_binary:
            return known[:, task]
        return known[:, task] & known[:, parent] & happened[:, parent]

    def same_labels(self, other: "TaskForest") -> bool:
        """Whether the tasks have the same names, kinds and dependencies as those of ``other``."""
        return [(t.name, t.after, t.kind) for t in self.tasks] == [(t.name, t.after, t.kind) for t in other.tasks]

    def require_edges(self, needed_by: str) -> None:
        """Raises an `InputError` that names ``needed_by`` if there are several tasks and none needs another."""
        if len(self) > 1 and not self.edges:
            raise InputError(f"{needed_by} must have tasks of which some need another (`after`), not {self}")

    def require_binary(self, needed_by: str) -> None:
        """Raises an `InputError` that names ``needed_by`` if a task is a value."""
        if self.values:
            rule = "must be `TaskForest.funnel`: see `FunnelAndValues` for the others"
            raise InputError(f"`tasks` (={self}) of {needed_by}, of which {self.values[0].name!r} is a value, {rule}")


def TaskChain(  # noqa: N802  (named like a class, because it makes one kind of forest)
    names: Sequence[str],
    label_columns: Sequence[str] | None = None,
    weight_columns: Sequence[str] | None = None,
) -> TaskForest:
    """Returns the forest of a plain funnel, in which each task needs the previous one.

    Args:
        names: names of the tasks, starting with the first step of the funnel.
        label_columns: data column of each task's label; the task's name by default.
        weight_columns: data column of each task's sample weight; none by default.

    Raises:
        InputError: if there is no task, a name occurs twice, or there is not one column per task.

    Example::

        >>> tasks = TaskChain(["click", "cart", "purchase"])
        >>> print(tasks)
        click -> cart -> purchase
        >>> tasks.spaces("purchase")
        ('impressions', 'after cart')
    """
    if isinstance(names, str) or not names:
        raise InputError(f"`names` (={names!r}) must be a sequence of at least one task name")
    check_type("names", names, Sequence[str])
    for argument, given in {"label_columns": label_columns, "weight_columns": weight_columns}.items():
        check_type(argument, given, Sequence[str | None] | None)
        if given is not None and len(given) != len(names):
            raise InputError(f"`{argument}` (={list(given)}) must have one entry a task ({len(names)})")
    tasks = []
    for place, name in enumerate(names):
        after = names[place - 1] if place else None
        weight = weight_columns[place] if weight_columns else None
        label = label_columns[place] if label_columns else name
        tasks.append(Task(name, after=after, label_column=label, weight_column=weight))
    return TaskForest(*tasks)


def delayed_task(name: str) -> str:
    """The task that says whether ``name`` happened, but only after its label was first read."""
    return f"{name}_delayed"


def real_negative_task(name: str) -> str:
    """The task that says whether a label of ``name`` that was first read as 0 stayed 0."""
    return f"{name}_real_negative"


def corrected_tasks(tasks: TaskForest) -> list[tuple[int, int, int]]:
    """Returns the positions of each task that has both beside it, with the positions of the two.

    Example::

        >>> corrected_tasks(TaskForest(Task("click"), Task("buy"), Task("buy_delayed"), Task("buy_real_negative")))
        [(1, 2, 3)]
    """
    beside = [(name, delayed_task(name), real_negative_task(name)) for name in tasks]
    index = tasks.names.index
    return [(index(a), index(b), index(c)) for a, b, c in beside if {b, c} <= set(tasks)]
