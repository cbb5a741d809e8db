"""The lookup of all fields at once, held to its definition in float64."""

import pytest
import torch

from tests.ops.embedding_bag.inputs import random_bags
from torchrec_mtl.errors import InputError
from torchrec_mtl.ops.embedding_bag import lookup, reference

pytestmark = pytest.mark.usefixtures("kernel")
TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-14}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES.items())
@pytest.mark.parametrize(("batch", "longest"), [(0, 3), (1, 1), (1, 9), (63, 3), (64, 0), (65, 1), (200, 3)])
def test_it_is_the_definition(batch, longest, dtype, tolerance, weighted):
    given = random_bags(batch, batch=batch, longest=longest, dtype=dtype)
    if not weighted:
        given["weights"] = None
    exact = {**given, "tables": [table.double() for table in given["tables"]]}
    if weighted:
        exact["weights"] = given["weights"].double()
    torch.testing.assert_close(lookup(**given).double(), reference.lookup(**exact), rtol=tolerance, atol=tolerance)


def test_one_id_a_bag_gives_its_row_to_the_last_bit():
    table, ids = torch.randn(90, 12), torch.randint(90, (70,))
    found = lookup([table], [0], [0], [False], ids, torch.arange(71), batch=70)
    assert found.equal(table[ids])


@pytest.mark.parametrize("weighted", [False, True])
def test_the_tables_gradients_are_the_definitions(weighted):
    given = random_bags(2, batch=40, dtype=torch.float64)
    if not weighted:
        given["weights"] = None
    tables = [table.requires_grad_() for table in given["tables"][:2]] + given["tables"][2:]
    upstream = torch.randn(40, lookup(**given).shape[1], dtype=torch.float64)
    found, expected = (
        torch.autograd.grad(f(**given), tables[:2], upstream.clone()) for f in (lookup, reference.lookup)
    )
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)


def test_one_gradient_for_all_rows_needs_no_memory_of_its_own():
    table = torch.zeros(3, 2, requires_grad=True)
    lookup([table], [0], [0], [False], torch.tensor([2, 2]), torch.arange(3), batch=2).sum().backward()
    assert table.grad.tolist() == [[0, 0], [0, 0], [2, 2]]


def test_what_has_no_derivative_is_refused():
    given = random_bags(3)
    given["weights"].requires_grad_()
    with pytest.raises(InputError, match="`weights` must not require a gradient"):
        lookup(**given)
    table = torch.randn(3, 2, requires_grad=True)
    output = lookup([table], [0], [0], [False], torch.tensor([2]), torch.arange(2), batch=1)
    (gradient,) = torch.autograd.grad(output.square().sum(), table, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_ids_and_offsets_may_be_of_32_bits():
    given = random_bags(0)
    narrow = {**given, "ids": given["ids"].int(), "offsets": given["offsets"].int()}
    assert lookup(**narrow).equal(lookup(**given))


def test_the_number_of_threads_does_not_change_a_bit():
    given, threads = random_bags(1, batch=500), torch.get_num_threads()
    try:
        found = [torch.set_num_threads(n) or lookup(**given) for n in (1, 2, 3)]
    finally:
        torch.set_num_threads(threads)
    assert found[0].equal(found[1])
    assert found[0].equal(found[2])


TABLE = torch.randn(3, 4)
GOOD = {
    "tables": [TABLE],
    "table_of_field": [0],
    "key_of_field": [0],
    "mean_of_field": [False],
    "ids": torch.tensor([2, 0, 1]),
    "offsets": torch.tensor([0, 1, 3]),
    "batch": 2,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": torch.tensor([2, 3, 1])}, r"an id of key 0 \(=3\) must be from 0 to 2"),
        ({"ids": torch.tensor([2, -1, 1])}, r"an id of key 0 \(=-1\) must be from 0 to 2"),
        ({"ids": torch.tensor([2.0, 0, 1])}, "`ids` must be int64 or int32"),
        ({"offsets": torch.tensor([0, 2, 1])}, "`offsets` must grow, up to the number of ids"),
        ({"offsets": torch.tensor([-1, 1, 3])}, "`offsets` must grow, up to the number of ids"),
        ({"offsets": torch.tensor([0, 1, 4])}, "`offsets` must grow, up to the number of ids"),
        ({"batch": 3}, r"`offsets` \(3 of them\) must be one more than a multiple of the batch \(=3\)"),
        ({"key_of_field": [1]}, r"a field's key \(=1\) must be in the batch"),
        ({"table_of_field": [1]}, r"a field's table \(=1\) must be one of 1"),
        ({"mean_of_field": []}, "a table, a key and a pooling for each field"),
        ({"tables": [TABLE.T]}, "tables must be contiguous matrices"),
        ({"weights": torch.ones(2)}, "`weights` must be one for each id"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(RuntimeError, match=message):
        lookup(**{**GOOD, **change})


def test_tables_are_float32_or_float64_and_all_of_one_type():
    with pytest.raises(InputError, match="the lookup kernel cannot be used: it takes float32 or float64"):
        lookup(**{**GOOD, "tables": [TABLE.half()]})
    with pytest.raises(RuntimeError, match="tables must be contiguous matrices on the CPU, all of one type"):
        lookup(**{**GOOD, "tables": [TABLE, TABLE.double()]})
