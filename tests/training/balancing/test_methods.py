"""Each method's weights are those of an oracle written from its paper."""

import inspect
import itertools
import math

import numpy as np
import pytest
import torch
from docstring_parser import parse

from tests.oracles import balancing as oracle
from tests.support import TASKS, chain
from tests.training.balancing.cases import WEIGHTS, make
from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs.parameters import parameters
from torchrec_mtl.tasks import TaskChain
from torchrec_mtl.training.balancing import BALANCINGS, check_balancing, make_balancing
from torchrec_mtl.training.balancing.mgda import shortest


def weigh(method, losses, gradients):
    return method(torch.as_tensor(losses), torch.as_tensor(gradients @ gradients.T)).detach().double().numpy()


def drawn(seed, num_tasks=3, size=6, common=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num_tasks, size)) * rng.uniform(0.1, 3, (num_tasks, 1)) + common


@pytest.mark.parametrize("name", BALANCINGS)
def test_weights_over_many_batches_are_the_oracles(name):
    method, gradients = make(name), [drawn(number) for number in range(30)]
    losses = np.random.default_rng(0).uniform(0.1, 1.0, (30, 3))
    for number in range(30):
        wanted = WEIGHTS[name](losses[: number + 1], gradients[: number + 1])
        np.testing.assert_allclose(weigh(method, losses[number], gradients[number]), wanted, rtol=2e-5, atol=2e-6)


def test_uncertainty_has_the_gradients_of_its_equation():
    """By central differences in the noises themselves."""
    losses, sigmas = np.array([0.7, 0.2, 0.01]), np.array([0.5, 1.0, 2.0])
    method = make("uncertainty").double()
    method.log_variances.data = torch.from_numpy(2 * np.log(sigmas))
    objective = (method(torch.tensor(losses), torch.empty(0)) * torch.tensor(losses)).sum() + method.penalty()
    assert objective.item() == pytest.approx(oracle.uncertainty(losses, sigmas), rel=1e-12)
    objective.backward()
    for task, step in itertools.product(range(3), [1e-6]):
        apart = [np.where(np.arange(3) == task, sigmas * math.exp(sign * step / 2), sigmas) for sign in (1, -1)]
        slope = (oracle.uncertainty(losses, apart[0]) - oracle.uncertainty(losses, apart[1])) / (2 * step)
        assert method.log_variances.grad[task].item() == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("interval", [1, 3])
def test_dwa_averages_an_interval(interval):
    history = np.random.default_rng(1).uniform(0.1, 1.0, (12, 3))
    method = BALANCINGS["dwa"](TASKS, interval=interval)
    for number in range(1, 13):
        found = weigh(method, history[number - 1], drawn(0))
        np.testing.assert_allclose(found, oracle.dwa(history[:number], 2.0, interval), rtol=1e-12)


@pytest.mark.parametrize("num_tasks", [2, 3, 5])
@pytest.mark.parametrize("seed", range(5))
def test_pcgrad_is_its_algorithm_on_the_gradients(seed, num_tasks):
    gradients, method = drawn(seed, num_tasks, size=3, common=-0.3), BALANCINGS["pcgrad"](chain(num_tasks))
    for number in range(3):
        found = weigh(method, np.ones(num_tasks), gradients) @ gradients
        np.testing.assert_allclose(found, oracle.pcgrad(gradients, number), rtol=1e-10, atol=1e-12)


def test_pcgrad_is_the_sum_where_nothing_opposes():
    gradients = np.abs(drawn(0))
    assert weigh(make("pcgrad"), np.ones(3), gradients).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("num_tasks", [2, 3, 6])
@pytest.mark.parametrize("size", [2, 9])
@pytest.mark.parametrize("seed", range(5))
def test_mgda_is_the_shortest_average(seed, size, num_tasks):
    """With two columns, three tasks or more can have the average 0, by many weights."""
    gradients = drawn(seed, num_tasks, size, common=1.0)
    found, wanted = (
        weights @ gradients
        for weights in (
            weigh(BALANCINGS["mgda"](chain(num_tasks)), np.ones(num_tasks), gradients),
            oracle.mgda(gradients),
        )
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("seed", range(8))
def test_mgda_of_two_is_the_closed_form(seed):
    gradients = drawn(seed, num_tasks=2, size=2, common=0.5)
    weights = shortest((gradients @ gradients.T).tolist())
    assert weights[0] == pytest.approx(oracle.mgda_two(*gradients), abs=1e-12)


@pytest.mark.parametrize("normalise", ["l2", "loss", "loss+"])
def test_mgda_divides_gradients_first(normalise):
    gradients, losses = drawn(3), np.array([0.5, 0.1, 2.0])
    divisor = {"l2": np.linalg.norm(gradients, axis=1), "loss": losses}
    divisor["loss+"] = divisor["l2"] * losses
    wanted = oracle.mgda(gradients / divisor[normalise][:, None])
    found = weigh(BALANCINGS["mgda"](TASKS, normalise=normalise), losses, gradients)
    np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("c", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("num_tasks", [2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_cagrad_solves_the_primal_problem(seed, num_tasks, c):
    """No direction within the ball is better for the task it is worst for."""
    gradients = drawn(seed, num_tasks, size=8)
    found = weigh(BALANCINGS["cagrad"](chain(num_tasks), c=c), np.ones(num_tasks), gradients) @ gradients
    mean = gradients.mean(axis=0)
    assert np.linalg.norm(found - mean) <= c * np.linalg.norm(mean) + 1e-9
    wanted = oracle.cagrad(gradients, c)
    assert (gradients @ found).min() >= (gradients @ wanted).min() - 1e-6
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-3)


def test_cagrad_rescales():
    gradients = drawn(0)
    whole, square, linear = (
        weigh(BALANCINGS["cagrad"](TASKS, c=0.5, rescale=rescale), np.ones(3), gradients)
        for rescale in ("none", "square", "linear")
    )
    np.testing.assert_allclose(whole / 1.25, square)
    np.testing.assert_allclose(whole / 1.5, linear)


@pytest.mark.parametrize("alpha", [0.0, 0.12, 1.5])
def test_gradnorm_follows_its_algorithm_from_the_first_batch(alpha):
    gradients, losses = [drawn(number) for number in range(20)], np.random.default_rng(1).uniform(0.1, 1.0, (20, 3))
    method = BALANCINGS["gradnorm"](TASKS, alpha=alpha, learning_rate=0.01)
    for number in range(20):
        found = weigh(method, losses[number], gradients[number])
        wanted = oracle.gradnorm(losses[: number + 1], gradients[: number + 1], alpha, 0.01)
        np.testing.assert_allclose(found, wanted, rtol=1e-9)
    assert np.abs(found - 1).max() > 0.01


def test_gradnorm_brings_norms_together():
    gradients, method = drawn(0), BALANCINGS["gradnorm"](TASKS, alpha=0.0, learning_rate=0.01)
    for _ in range(500):
        weights = weigh(method, np.ones(3), gradients)
    norms = weights * np.linalg.norm(gradients, axis=1)
    assert norms.max() < 1.1 * norms.min()


def test_gradnorm_may_start_from_a_loss_that_is_known():
    losses, gradients = np.array([0.5, 0.2, 0.1]), drawn(0)
    known = BALANCINGS["gradnorm"](TASKS, initial_losses="log2")
    weigh(known, losses, gradients)
    other = BALANCINGS["gradnorm"](TASKS)
    other.initial.fill_(math.log(2))
    weigh(other, losses, gradients)
    np.testing.assert_array_equal(weigh(known, losses, gradients), weigh(other, losses, gradients))


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_famo_follows_its_algorithm(decay):
    losses = np.random.default_rng(1).uniform(0.1, 1.0, (40, 3))
    method = BALANCINGS["famo"](TASKS, learning_rate=0.05, decay=decay)
    for number in range(40):
        wanted = oracle.famo(losses[: number + 1], 0.05, decay)
        np.testing.assert_allclose(weigh(method, losses[number], drawn(0)), wanted, rtol=1e-5)


def test_famo_weighs_less_what_falls_most():
    method = BALANCINGS["famo"](TASKS, learning_rate=0.05)
    for number in range(20):
        weigh(method, np.array([0.9**number, 1.0, 1.0]), drawn(0))
    shares = method.logits.softmax(0)
    assert shares[0] < 0.2
    assert shares[1] == shares[2] > 0.4


@pytest.mark.parametrize("num_tasks", [2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_aligned_gradients_are_those_of_the_singular_values(seed, num_tasks):
    """The sum is along an orthonormal system of the gradients' span, at the scale of the least singular value."""
    gradients = drawn(seed, num_tasks, size=7)
    found = weigh(BALANCINGS["aligned_mtl"](chain(num_tasks)), np.ones(num_tasks), gradients) @ gradients
    np.testing.assert_allclose(found, oracle.aligned_mtl(gradients), rtol=1e-8)
    assert np.linalg.norm(found) == pytest.approx(np.linalg.svd(gradients)[1].min() * math.sqrt(num_tasks))


def test_aligned_gradients_leave_out_a_direction_that_is_not_there():
    gradients = drawn(0)
    gradients[2] = gradients[0] - 2 * gradients[1]
    found = weigh(BALANCINGS["aligned_mtl"](TASKS), np.ones(3), gradients) @ gradients
    np.testing.assert_allclose(found, oracle.aligned_mtl(gradients), rtol=1e-8)


def degenerate():
    yield np.zeros((3, 4))
    yield np.array([[1.0, 2.0], [0.0, 0.0], [0.0, 0.0]])
    yield np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    yield np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])  # no direction helps both
    yield drawn(0) * 1e-9
    yield drawn(0) * np.array([[1e-6], [1.0], [1e6]])


@pytest.mark.parametrize("gradients", degenerate(), ids=lambda gradients: str(gradients[0][:2]))
@pytest.mark.parametrize("name", BALANCINGS)
def test_weights_are_finite_whatever_the_gradients(name, gradients):
    method = make(name)
    for losses in (np.ones(3), np.array([0.5, 0.0, 1e-9]), np.ones(3)):
        assert np.isfinite(weigh(method, losses, gradients)).all()


@pytest.mark.parametrize("name", [name for name in BALANCINGS if name != "static"])
def test_one_task_is_nothing_to_balance(name):
    with pytest.raises(InputError, match="must be at least two for `balancing`"):
        BALANCINGS[name](TaskChain(["click"]))


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("uncertain", {}, r"`balancing` .* must be one of \['sum', 'uncertainty'"),
        ("sum", {"alpha": 1.0}, "`balancing_args` of 'sum' .* must be one of"),
        ("static", {}, "`weights` of `balancing` 'static' must be given"),
        ("static", {"weights": [1.0]}, "`weights` .* must be one a task"),
        ("static", {"weights": [1.0, -1.0, 1.0]}, "`weights` .* must be at least 0"),
        ("dwa", {"temperature": 0.0}, "`temperature` .* must be above 0"),
        ("dwa", {"interval": 0}, "`interval` .* must be at least 1"),
        ("dwa", {"interval": 1.5}, "`interval` .* must be of type int"),
        ("pcgrad", {"gradients": "tables"}, "`gradients` .* must be one of"),
        ("mgda", {"normalise": "l1"}, "`normalise` .* must be one of"),
        ("cagrad", {"c": 1.0}, "`c` .* must be below 1"),
        ("cagrad", {"rescale": "log"}, "`rescale` .* must be one of"),
        ("gradnorm", {"alpha": -1.0}, "`alpha` .* must be at least 0"),
        ("gradnorm", {"initial_losses": "zero"}, "`initial_losses` .* must be one of"),
        ("famo", {"decay": float("nan")}, "`decay` .* must be at least 0"),
        ("aligned_mtl", {"gradients": "all"}, "`gradients` .* must be one of"),
    ],
)
def test_a_wrong_setting_is_one_sentence(name, arguments, sentence):
    with pytest.raises(InputError, match=sentence):
        make_balancing(name, TASKS, arguments)


@pytest.mark.parametrize("name", BALANCINGS)
def test_each_argument_is_named_typed_and_described(name):
    kind = BALANCINGS[name]
    described = {each.arg_name: each.description for each in parse(kind.__doc__).params}
    first, *others = inspect.signature(kind).parameters.values()
    assert set(described) == {first.name, *(each.name for each in others)}
    assert first.name == "tasks"
    assert all(each.kind is each.KEYWORD_ONLY and each.annotation is not each.empty for each in others)
    assert {each.name for each in others} == set(parameters(kind, "", {}, ["tasks"]))


def test_names_are_known_before_tasks_are():
    check_balancing("cagrad", {"c": 7.0})
    with pytest.raises(InputError, match="the nearest is 'rescale'"):
        check_balancing("cagrad", {"rescal": "none"})
