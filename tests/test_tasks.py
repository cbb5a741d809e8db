"""Tasks and what each needs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrec_mtl import Task, TaskChain, TaskForest
from torchrec_mtl.errors import InputError

TREE = TaskForest(Task("click"), Task("like", after="click"), Task("buy", after="click"), Task("return", after="buy"))


@st.composite
def forests(draw):
    parents = [draw(st.none() | st.integers(0, t - 1)) if t else None for t in range(draw(st.integers(1, 6)))]
    tasks = [Task(f"t{t}", after=None if parent is None else f"t{parent}") for t, parent in enumerate(parents)]
    return TaskForest(*tasks), parents


@given(forests())
def test_edges_parents_and_ancestors_say_the_same(made):
    forest, parents = made
    assert forest.parents == tuple(parents)
    assert forest.edges == tuple((parent, child) for child, parent in enumerate(parents) if parent is not None)
    assert forest.is_chain == (parents == [None, *range(len(parents) - 1)])
    for task, name in enumerate(forest):
        walked, at = [], parents[task]
        while at is not None:
            walked.append(at)
            at = parents[at]
        assert forest.ancestors(task) == tuple(walked)
        after = [] if parents[task] is None else [f"after t{parents[task]}"]
        assert list(forest.spaces(name)) == ["impressions", *after]
    assert all(name in str(forest) for name in forest)


def test_a_chain_is_the_forest_in_which_each_needs_the_one_before():
    chain = TaskChain(["click", "buy"], label_columns=["c", "b"], weight_columns=["w", "w"])
    assert chain == TaskForest(
        Task("click", label_column="c", weight_column="w"),
        Task("buy", after="click", label_column="b", weight_column="w"),
    )
    assert chain.is_chain
    assert not TREE.is_chain
    assert TaskForest(Task("click")).is_chain


def test_it_reads_as_what_comes_after_what():
    assert str(TREE) == "click -> (like, buy -> return)"
    assert str(TaskChain(["a", "b", "c"])) == "a -> b -> c"
    assert str(TaskForest(Task("income"), Task("married"))) == "income, married"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: TaskForest(), r"`tasks` \(=\[\]\) must be at least one `Task`"),
        (lambda: TaskForest("click"), r"`tasks` \(=\['click'\]\) must be at least one `Task`"),
        (lambda: Task(""), r"`name` \(=''\) of a task must be a non-empty string"),
        (lambda: Task("buy", after=3), r"`after` \(=3\) of a task must be a non-empty string"),
        (lambda: TaskForest(Task("a"), Task("a")), r"`name` \(='a'\) must not be that of two tasks"),
        (
            lambda: TaskForest(Task("a"), Task("b", label_column="a")),
            r"`label_column` \(='a'\) must not be that of",
        ),
        (
            lambda: TaskForest(Task("buy", after="click"), Task("click")),
            r"`after` \(='click'\) of task 'buy' must be a task given before it: \[\]",
        ),
        (lambda: TaskForest(Task("a", after="a")), r"`after` \(='a'\) of task 'a' must be a task given before it"),
        (lambda: TREE.index("byu"), r"task 'byu' must be one of \[.*\]; the nearest is 'buy'"),
        (lambda: TaskChain("click"), r"`names` \(='click'\) must be a sequence"),
        (lambda: TaskChain(["a", "b"], ["x"]), r"`label_columns` \(=\['x'\]\) must have one entry a task \(2\)"),
        (lambda: TaskForest(Task("a"), Task("b")).require_edges("BPCM"), "BPCM must have tasks of which some need"),
    ],
)
def test_a_wrong_forest_is_told(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()
