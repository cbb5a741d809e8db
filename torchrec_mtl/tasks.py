"""The funnel: an ordered chain of binary tasks, each implying the one before."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torchrec_mtl.errors import InputError


@dataclass(frozen=True, init=False)
class TaskChain:
    """Tasks in funnel order, with the data columns that hold their labels and weights.

    Task ``t`` can only happen where task ``t - 1`` did, so its label implies the former one. Everything that
    has one column a task (labels, weights, logits; all ``[B, T]``) is in this order.

    Args:
        names: the tasks' names, first step of the funnel first.
        label_columns: the data column of each task's label; the task's name by default.
        weight_columns: the data column of each task's sample weight; none by default (weight 1 everywhere).
            A weight of 0 masks the label: the way to say that it is missing.

    Raises:
        InputError: if there is no task, a name occurs twice, or the columns are not one a task.

    Example::

        >>> tasks = TaskChain(["click", "cart", "purchase"])
        >>> len(tasks), tasks.index("cart"), list(tasks)
        (3, 1, ['click', 'cart', 'purchase'])
        >>> tasks.spaces("purchase")
        ('impressions', 'after cart')
    """

    names: tuple[str, ...]
    label_columns: tuple[str, ...]
    weight_columns: tuple[str, ...] | None

    def __init__(
        self,
        names: Sequence[str],
        label_columns: Sequence[str] | None = None,
        weight_columns: Sequence[str] | None = None,
    ) -> None:
        if isinstance(names, str) or not names:
            raise InputError(f"`names` (={names!r}) must be a sequence of at least one task name")
        columns = {"names": names, "label_columns": label_columns, "weight_columns": weight_columns}
        for argument, given in columns.items():
            if given is None:
                continue
            if len(given) != len(names):
                raise InputError(f"`{argument}` (={list(given)}) must have one entry a task ({len(names)})")
            if argument != "weight_columns" and len(set(given)) != len(given):
                raise InputError(f"`{argument}` (={list(given)}) must not repeat an entry")
        object.__setattr__(self, "names", tuple(names))
        object.__setattr__(self, "label_columns", tuple(label_columns or names))
        object.__setattr__(self, "weight_columns", tuple(weight_columns) if weight_columns else None)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def index(self, name: str) -> int:
        """The position of task ``name`` in the funnel."""
        if name not in self.names:
            raise InputError(f"task {name!r} must be one of {list(self.names)}")
        return self.names.index(name)

    def spaces(self, name: str) -> tuple[str, ...]:
        """The sample spaces a metric of task ``name`` can be measured in, the whole space first.

        ``"impressions"`` is every row; ``"after X"`` only the rows where the step before, ``X``, happened.
        """
        position = self.index(name)
        return ("impressions",) if position == 0 else ("impressions", f"after {self.names[position - 1]}")
