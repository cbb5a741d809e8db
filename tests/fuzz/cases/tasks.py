"""Tasks and forests: what is accepted is kept as it was given."""

from tests.fuzz.cases.drawn import one_of
from tests.fuzz.cell import Case
from torchrec_mtl import ZILN, Binary, Task, TaskChain, TaskForest


def _task_judge(given, task):
    assert (task.name, task.after) == (given["name"], given["after"])
    assert task.label_column == (given["label_column"] or given["name"])


def _chain_judge(given, tasks):
    assert tasks.names == tuple(given["names"])
    assert tasks.is_chain
    assert all(isinstance(name, str) for name in tasks.names)
    assert tasks.label_columns == tuple(given["label_columns"])
    assert tasks.weight_columns == tuple(given["weight_columns"])


def _forest_judge(given, tasks):
    assert tasks.names == ("click", given["second"].name)


def _of_chain(rng):
    names = one_of(rng, ["click"], ["click", "cart", "buy"])
    return {
        "names": list(names),
        "label_columns": [f"label_{name}" for name in names],
        "weight_columns": [f"weight_{name}" for name in names],
    }


CASES = {
    "Task": Case(
        Task,
        lambda rng: {
            "name": "buy",
            "after": one_of(rng, "click", None),
            "label_column": one_of(rng, "bought", None),
            "weight_column": one_of(rng, "weight", None),
            "kind": one_of(rng, Binary(), ZILN()),
        },
        _task_judge,
    ),
    "TaskForest": Case(
        lambda second: TaskForest(Task("click"), second),
        lambda rng: {"second": Task("buy", after=one_of(rng, "click", None))},
        _forest_judge,
    ),
    "TaskChain": Case(TaskChain, _of_chain, _chain_judge),
}
