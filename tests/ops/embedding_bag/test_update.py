"""The update of the rows that a batch looked up, held to its definition in float64, and to PyTorch's own optimizers."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.ops.embedding_bag.inputs import random_bags
from torchrec_mtl.errors import InputError
from torchrec_mtl.ops.embedding_bag import reference, update

pytestmark = pytest.mark.usefixtures("kernel")
STATES = {  # by optimizer, whether each of its states has a number for each column
    "sgd": (),
    "adagrad": (True,),
    "rowwise_adagrad": (False,),
    "adam": (True, True),
    "rowwise_adam": (True, False),
}
TOLERANCES = {torch.float32: 1e-5, torch.float64: 1e-13}
SETTINGS = {"learning_rate": 0.1, "eps": 1e-3, "betas": (0.8, 0.95), "weight_decay": 0.01}


def states_of(tables: list[Tensor], optimizer: str) -> list[list[Tensor]]:
    """The optimizer's states, all zero."""
    return [[torch.zeros_like(x if whole else x[:, 0]) for x in tables] for whole in STATES[optimizer]]


def steps(optimizer: str, dtype=torch.float32, exact=False, weighted=True, num_steps=4, **sizes) -> list[Tensor]:
    """Tables and states after some steps, by the kernel or by the definition in float64."""
    run, of = (reference.update, torch.float64) if exact else (update, dtype)
    tables = [table.to(of) for table in random_bags(0, dtype=dtype, **sizes)["tables"]]
    states = states_of(tables, optimizer)
    for step in range(1, num_steps + 1):
        given = {**random_bags(step, dtype=dtype, **sizes), "tables": tables}
        given["weights"] = given["weights"].to(of) if weighted else None
        width = sum(tables[t].shape[1] for t in given["table_of_field"])
        generator = torch.Generator().manual_seed(step)
        gradient = torch.randn(given["batch"], width, dtype=dtype, generator=generator).to(of)
        run(**given, states=states, gradient=gradient, optimizer=optimizer, step=step, **SETTINGS)
    return [*tables, *(x for state in states for x in state)]


@pytest.mark.parametrize("optimizer", STATES)
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES.items())
@pytest.mark.parametrize(("batch", "longest", "weighted"), [(0, 3, 0), (1, 1, 1), (1, 9, 0), (64, 0, 0), (65, 3, 1)])
def test_it_is_the_definition(optimizer, dtype, tolerance, batch, longest, weighted):
    sizes = {"batch": batch, "longest": longest, "weighted": bool(weighted), "rows": (7, 1, 90, 3000)}
    sizes["widths"] = (4, 33, 20, 17)
    found, exact = steps(optimizer, dtype, **sizes), steps(optimizer, exact=True, dtype=dtype, **sizes)
    for of_kernel, of_definition in zip(found, exact, strict=True):
        torch.testing.assert_close(of_kernel.double(), of_definition, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("optimizer", STATES)
def test_the_number_of_threads_does_not_change_a_bit(optimizer):
    threads = torch.get_num_threads()
    try:
        found = [torch.set_num_threads(n) or steps(optimizer, batch=300) for n in (1, 2, 3)]
    finally:
        torch.set_num_threads(threads)
    for one, two, three in zip(*found, strict=True):
        assert one.equal(two)
        assert one.equal(three)


PYTORCHS = {
    "sgd": (torch.optim.SGD, {}),
    "adagrad": (torch.optim.Adagrad, {"eps": 1e-3}),
    "adam": (torch.optim.SparseAdam, {"betas": (0.8, 0.95), "eps": 1e-30}),  # elsewhere in the equation
}


@pytest.mark.parametrize("optimizer", PYTORCHS)
def test_it_is_pytorchs_optimizer(optimizer):
    table = torch.randn(40, 8, dtype=torch.float64)
    weight, states = table.clone().requires_grad_(), states_of([table], optimizer)
    kind, options = PYTORCHS[optimizer]
    alike = kind([weight], lr=0.1, **options)
    for step in range(1, 6):
        ids, gradient = torch.randint(40, (30,)), torch.randn(10, 8, dtype=torch.float64)
        F.embedding_bag(ids.view(10, 3), weight, mode="mean", sparse=True).backward(gradient)
        alike.step()
        alike.zero_grad()
        bags = [0], [0], [True], ids, torch.arange(0, 31, 3), 10
        options = {"learning_rate": 0.1, "eps": options["eps"] if optimizer != "sgd" else 0, "betas": (0.8, 0.95)}
        update([table], states, *bags, gradient, optimizer, step=step, **options)
    torch.testing.assert_close(table, weight.detach(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("optimizer", STATES)
def test_other_rows_keep_their_bits(optimizer):
    table = torch.randn(50, 4)
    states = [[torch.rand_like(x) for x in state] for state in states_of([table], optimizer)]
    values = [table, *(state[0] for state in states)]
    before = [x.clone() for x in values]
    bags = [0], [0], [False], torch.tensor([3, 9, 3]), torch.tensor([0, 1, 3]), 2
    update([table], states, *bags, torch.ones(2, 4), optimizer, **SETTINGS)
    for now, then in zip(values, before, strict=True):
        changed = (now != then).view(50, -1).any(1)
        assert changed.nonzero().flatten().tolist() == [3, 9]


def test_ids_and_offsets_may_be_of_32_bits():
    given = random_bags(0)
    gradient = torch.randn(given["batch"], sum(given["tables"][t].shape[1] for t in given["table_of_field"]))
    narrow = {**given, "tables": [x.clone() for x in given["tables"]]}
    narrow |= {"ids": given["ids"].int(), "offsets": given["offsets"].int()}
    for of_width in (given, narrow):
        update(**of_width, states=[], gradient=gradient, optimizer="sgd", learning_rate=0.1)
    for wide, of_32 in zip(given["tables"], narrow["tables"], strict=True):
        assert wide.equal(of_32)


GOOD = {
    "table_of_field": [0, 1],
    "key_of_field": [0, 1],
    "mean_of_field": [False, False],
    "ids": torch.tensor([2, 0, 1, 1]),
    "offsets": torch.tensor([0, 1, 2, 3, 4]),
    "batch": 2,
    "gradient": torch.ones(2, 8),
    "optimizer": "sgd",
    "states": [],
    "learning_rate": 0.1,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": torch.tensor([2, 0, 1, 3])}, r"an id of key 1 \(=3\) must be from 0 to 2"),
        ({"ids": torch.tensor([2, -1, 1, 1])}, r"an id of key 0 \(=-1\) must be from 0 to 2"),
        ({"offsets": torch.tensor([0, 1, 2, 3, 5])}, "`offsets` must grow, up to the number of ids"),
        ({"gradient": torch.ones(2, 4)}, r"`gradient` \(of shape \[2, 4\]\) must be of shape \[2, 8\]"),
        ({"gradient": torch.ones(2, 8).double()}, "`gradient` must be on the CPU and of the tables' type"),
        ({"optimizer": "lamb"}, r"`optimizer` \(=lamb\) is unknown"),
        ({"optimizer": "adagrad"}, "adagrad must have other states"),
        ({"optimizer": "adagrad", "states": [[torch.zeros(3)] * 2]}, r"`state` .*must be of shape \[3, 4\]"),
        ({"optimizer": "rowwise_adagrad", "states": [[torch.zeros(3).half()] * 2]}, "states must be contiguous"),
        ({"weights": torch.ones(2)}, "`weights` must be one for each id"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_update(change, message):
    tables = [torch.zeros(3, 4), torch.zeros(3, 4)]
    with pytest.raises(RuntimeError, match=message):
        update(tables, **{**GOOD, **change})
    assert not any(table.any() for table in tables)


def test_tables_are_float32_or_float64_and_all_of_one_type():
    table = torch.zeros(3, 4)
    with pytest.raises(InputError, match="the update kernel cannot be used: it takes float32 or float64"):
        update([table.half()] * 2, **GOOD)
    with pytest.raises(RuntimeError, match="tables must be contiguous matrices on the CPU, all of one type"):
        update([table, table.double()], **GOOD)
