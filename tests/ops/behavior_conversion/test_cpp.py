"""The C++ kernel against the definition, its dropout, and the ways PyTorch runs it."""

import functools

import pytest
import torch

from torchrec_mtl.errors import InputError
from torchrec_mtl.ops.behavior_conversion import behavior_conversion, masks, reference

pytestmark = pytest.mark.usefixtures("kernel")

CHAIN, TREE = [(0, 1), (1, 2)], [(0, 1), (0, 2), (2, 3)]
CASES = [  # B F D H m, edges, dropout
    (0, 5, 8, 8, 1, CHAIN, 0.1),
    (1, 1, 1, 1, 1, [(1, 0)], 0.0),
    (19, 5, 8, 6, 2, CHAIN, 0.3),
    (33, 23, 16, 16, 1, CHAIN, 0.1),
    (9, 30, 6, 7, 3, TREE, 0.5),
]


def arguments(batch, fields, dim, hidden, edges, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(batch + seed)
    square = (dim, dim)
    of_tower = [square, square, square, (hidden, dim), (hidden,), (dim, hidden), (dim,), square, square]
    num_tasks = 1 + max(max(edge) for edge in edges)
    shapes = [(batch, fields, dim), *of_tower * num_tasks, *[square] * 3 * len(edges)]
    drawn = (torch.randn(shape, generator=generator, dtype=torch.float64) / shape[-1] ** 0.5 for shape in shapes)
    return [x.to(dtype).requires_grad_() for x in drawn]


def by_kernel(fields, *weights, edges, num_heads, dropout, seed=5):
    return torch.stack(behavior_conversion(fields, weights, edges, num_heads, dropout, seed))


def by_definition(fields, *weights, edges, num_heads, dropout, seed=5):
    drawn = masks(fields.detach(), len(edges), dropout, seed)
    return torch.stack(reference.behavior_conversion(fields, *weights, edges=edges, num_heads=num_heads, masks=drawn))


def results(function, tensors, **options):
    output = function(*tensors, **options)
    upstream = torch.linspace(-9, 9, output.numel(), dtype=torch.float64).sin().view_as(output)
    return output, *torch.autograd.grad(output, tensors, upstream.to(output))


@pytest.mark.parametrize(("batch", "fields", "dim", "hidden", "num_heads", "edges", "dropout"), CASES)
def test_the_kernel_is_the_definition(batch, fields, dim, hidden, num_heads, edges, dropout):
    tensors = arguments(batch, fields, dim, hidden, edges)
    run, define = (
        results(function, tensors, edges=edges, num_heads=num_heads, dropout=dropout)
        for function in (by_kernel, by_definition)
    )
    for actual, expected in zip(run, define, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-11 * (1 + batch * fields))


@pytest.mark.parametrize(("batch", "fields", "dim", "hidden", "num_heads", "edges", "dropout"), CASES[2:])
def test_in_float32_it_is_as_accurate_as_the_definition(batch, fields, dim, hidden, num_heads, edges, dropout):
    """Over several draws: the definition's error of one is a matter of luck, and of the processor."""
    options, squares = {"edges": edges, "num_heads": num_heads, "dropout": dropout}, []
    for seed in range(8):
        double, single = (arguments(batch, fields, dim, hidden, edges, x, seed) for x in (torch.float64, torch.float32))
        exact, plain = (results(by_definition, tensors, **options) for tensors in (double, single))
        found = zip(exact, plain, results(by_kernel, single, **options), strict=True)
        squares.append([[x.norm().item() for x in (c.double() - a, b.double() - a, a)] for a, b, c in found])
    error, allowed, size = torch.tensor(squares).square().mean(0).sqrt().unbind(1)
    assert (error <= 2 * allowed + 1e-6 * size).all()


def test_first_and_second_derivatives():
    function = functools.partial(by_kernel, edges=CHAIN, num_heads=2, dropout=0.3)
    tensors = arguments(3, 2, 4, 3, CHAIN)
    assert torch.autograd.gradcheck(function, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


def test_a_state_that_no_loss_reads_has_no_gradient():
    tensors = arguments(5, 3, 4, 4, CHAIN)
    states = behavior_conversion(tensors[0], tensors[1:], CHAIN)
    first = torch.autograd.grad(states[0].sum(), tensors)
    assert first[1].any()
    assert not any(x.any() for x in first[10:])


def test_dropout_is_bernoulli_and_independent():
    """Bounds are five standard deviations."""
    batch, fields, dim, p = 500, 20, 10, 0.3
    drawn = masks(torch.zeros(batch, fields, dim), 3, p, 1)
    other = masks(torch.zeros(batch, fields, dim), 3, p, 2)
    assert torch.equal(drawn, masks(torch.zeros(batch, fields, dim), 3, p, 1))
    assert torch.equal(drawn, masks(torch.zeros(batch, fields, dim, dtype=torch.float64), 3, p, 1).float())
    assert set(drawn.unique().tolist()) <= {0.0, torch.tensor(1 / (1 - p)).item()}
    dropped = (drawn == 0).double().flatten(2) - p  # [E, B, F * D]
    variance = p * (1 - p)

    def check(mean, count, of_variance=variance):
        assert (mean.abs() <= 5 * (of_variance / count) ** 0.5).all()

    check(dropped.mean((1, 2)), batch * fields * dim)
    check(dropped.mean(1), batch)
    check(dropped.mean(2), fields * dim)
    pairs = [
        (dropped[0], dropped[1]),
        (dropped[0], (other[0] == 0).double().flatten(1) - p),
        (dropped[:, 1:], dropped[:, :-1]),
        (dropped[:, 8:], dropped[:, :-8]),
        (dropped[..., 1:], dropped[..., :-1]),
        (dropped[..., dim:], dropped[..., :-dim]),
    ]
    for one, two in pairs:
        check((one * two).mean(), one.numel(), variance**2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_bits_do_not_depend_on_the_threads(dtype):
    tensors, threads = arguments(1100, 3, 4, 4, CHAIN, dtype), torch.get_num_threads()
    try:
        of_threads = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            of_threads.append(results(by_kernel, tensors, edges=CHAIN, num_heads=1, dropout=0.2))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, y) for other in of_threads[1:] for x, y in zip(of_threads[0], other, strict=True))


def test_a_nan_stays_in_its_sample():
    tensors = [x.detach() for x in arguments(19, 4, 8, 8, CHAIN, torch.float32)]
    expected = by_kernel(*tensors, edges=CHAIN, num_heads=1, dropout=0.0)
    tensors[0][9, 2, 3] = torch.nan
    actual = by_kernel(*tensors, edges=CHAIN, num_heads=1, dropout=0.0)
    assert actual[:, 9].isnan().all()
    others = torch.arange(19) != 9
    assert torch.equal(actual[:, others], expected[:, others])


def test_opcheck():
    fields, *weights = arguments(3, 2, 4, 3, CHAIN)
    edges = [0, 1, 1, 2]
    torch.library.opcheck(torch.ops.torchrec_mtl.behavior_conversion.default, (fields, weights, edges, 2, 0.1, 7))
    read, upstream = [x.detach() for x in weights], [torch.ones_like(fields)] * 3
    backward = torch.ops.torchrec_mtl.behavior_conversion_backward.default
    torch.library.opcheck(backward, (fields.detach(), read, upstream, edges, 2, 0.1, 7))
    torch.library.opcheck(torch.ops.torchrec_mtl.behavior_conversion_masks.default, (fields.detach(), 2, 0.1, 7))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fields": torch.zeros(3, 8)}, r"`fields` \(of shape \[3, 8\]\) must be \[B, F, D\]"),
        (
            {"fields": torch.zeros(3, 0, 4)},
            r"`fields` \(of shape \[3, 0, 4\]\) must .* F and D at least 1",
        ),
        ({"weights": []}, "`weights` must be 9 tensors a task and 3 an edge, not 0"),
        ({"weights": [torch.zeros(4, 4)] * 33}, r"`weights` \(of shape \[4, 4\]\) must be of shape \[16, 4\]"),
        ({"edges": [(0, 3), (1, 2)]}, "`edges` must be between tasks 0 and 2"),
        ({"num_heads": 3}, r"`num_heads` \(=3\) must divide 4"),
        ({"dropout": 1.0}, r"`dropout` \(=1\) must be at least 0 and below 1"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    fields, *weights = (x.detach() for x in arguments(3, 2, 4, 4, CHAIN, torch.float32))
    with pytest.raises(RuntimeError, match=message):
        behavior_conversion(**{"fields": fields, "weights": weights, "edges": CHAIN, **change})


def test_a_mixture_of_types_is_refused():
    fields, *weights = (x.detach() for x in arguments(3, 2, 4, 4, CHAIN))
    with pytest.raises(InputError, match="the behavior-conversion kernel cannot be used: it takes float32 or float64"):
        behavior_conversion(fields.float(), weights, CHAIN)
