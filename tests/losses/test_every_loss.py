"""What holds for every loss: what a weight means, where its minimum is, and how it is called, traced and moved."""

import inspect

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torchrec.distributed import DistributedModelParallel

from tests.losses.strategies import few_examples, forests, seeds
from tests.support import TASKS, batch, build, chain, offers, tasks_for, three_tasks_for
from torchrec_mtl import MultiTaskTrain
from torchrec_mtl.errors import InputError
from torchrec_mtl.modules import MarginalFromConditional
from torchrec_mtl.systems import LOSSES
from torchrec_mtl.training.process_group import process_group
from torchrec_mtl.training.train_wrapper import reads_beyond_logits

# Each loss with what it requires, and again with all that it can read.
READ = {}
for _name, _make in LOSSES.items():
    _outputs = reads_beyond_logits(_make(tasks_for(_name, chain(2))))
    READ[_name] = (_name, tuple(output for output, required in _outputs.items() if required))
    if not all(_outputs.values()):
        READ[f"{_name} with {', '.join(_outputs)}"] = (_name, tuple(_outputs))
every_loss = pytest.mark.parametrize(("name", "read"), READ.values(), ids=READ)
weighted_losses = [name for name, make in LOSSES.items() if "task_weights" in inspect.signature(make).parameters]


def random_inputs(rng, num_rows, tasks, read):
    """Logits, labels and weights with zeros, [B, T], and the further outputs."""
    shape = (num_rows, len(tasks))
    logits, labels = torch.tensor(rng.normal(size=shape)), torch.tensor(rng.integers(0, 2, shape)).double()
    weights = torch.tensor(rng.integers(0, 3, shape) * rng.random(shape))
    further = {
        "conditional_logits": torch.tensor(rng.normal(size=shape)),
        "imputed_errors": torch.tensor(rng.uniform(0, 3, (num_rows, len(tasks.edges)))),
        "counterfactual_logits": torch.tensor(rng.normal(size=(num_rows, len(tasks.edges)))),
        "conversion_logits": torch.tensor(rng.normal(size=(num_rows, len(tasks.edges)))),
        "groups": torch.tensor(rng.integers(-1, 1, num_rows)),
        "other_logits": torch.tensor(rng.normal(size=shape)),
    }
    return logits, labels, weights, {name: further[name] for name in read}


@every_loss
@few_examples
@given(tasks=forests(), seed=seeds, num_rows=st.integers(1, 5))
def test_a_weight_counts_rows(name, read, tasks, seed, num_rows):
    """For the sum over rows: weight 2 is the row twice, weight 0 is no row, whatever the weights in the row."""
    rng, tasks = np.random.default_rng(seed), tasks_for(name, tasks)
    loss = LOSSES[name](tasks)
    logits, labels, weights, further = random_inputs(rng, num_rows, tasks, read)
    times = torch.tensor(rng.integers(0, 4, num_rows))
    times[0] = 2
    weighted = loss(logits, labels, weights * times[:, None], **further) * num_rows
    rows = torch.arange(num_rows).repeat_interleave(times)
    repeated = loss(logits[rows], labels[rows], weights[rows], **{name: x[rows] for name, x in further.items()})
    torch.testing.assert_close(weighted, repeated * len(rows), rtol=1e-9, atol=1e-12)


@every_loss
def test_no_weights_are_weights_of_one(name, read):
    logits, labels, weights, further = random_inputs(np.random.default_rng(0), 5, three_tasks_for(name), read)
    loss = LOSSES[name](three_tasks_for(name))
    torch.testing.assert_close(
        loss(logits, labels, **further), loss(logits, labels, torch.ones_like(weights), **further)
    )


@every_loss
@pytest.mark.parametrize("argument", ["labels", "weights"])
@pytest.mark.parametrize("wrong", [(4,), (4, 1), (1, 3), (3, 4), (4, 2), (1,), ()], ids=str)
def test_labels_and_weights_of_another_shape_raise(name, read, argument, wrong):
    """Each would be broadcast, or fail in PyTorch's words."""
    logits, labels, weights, further = random_inputs(np.random.default_rng(0), 4, three_tasks_for(name), read)
    call = {"labels": labels, "weights": weights, **further, argument: torch.ones(wrong)}
    with pytest.raises(InputError, match=rf"^`{argument}` \(of shape \[.*\]\) must have one row a sample"):
        LOSSES[name](three_tasks_for(name))(logits, **call)


@every_loss
def test_what_a_loss_reads_beyond_the_logits_is_checked_too(name, read):
    logits, labels, weights, further = random_inputs(np.random.default_rng(0), 4, three_tasks_for(name), read)
    for output, tensor in further.items():
        wrong = tensor[:, :1] if tensor.dim() == 2 else tensor[:, None]
        with pytest.raises(InputError, match=rf"^`{output}` \(of shape \[4, 1\]\) must have "):
            LOSSES[name](three_tasks_for(name))(logits, labels, weights, **{**further, output: wrong})


class Caller(nn.Module):
    """What `torch.fx` traces: it cannot write down keyword-only arguments of the module that it starts from."""

    def __init__(self, loss, read):
        super().__init__()
        self.loss, self.read = loss, read

    def forward(self, logits, labels, weights, first=None, second=None):
        return self.loss(logits, labels, weights, **dict(zip(self.read, (first, second), strict=False)))


@every_loss
@pytest.mark.parametrize("weighted", [False, True])
def test_torch_fx_traces_it(name, read, weighted):
    caller = Caller(LOSSES[name](three_tasks_for(name)), read)
    logits, labels, weights, further = random_inputs(np.random.default_rng(0), 4, three_tasks_for(name), read)
    arguments = (logits, labels, weights if weighted else None, *further.values())
    assert torch.fx.symbolic_trace(caller)(*arguments) == caller(*arguments)


@pytest.mark.parametrize("name", weighted_losses)
def test_task_weights_survive_distributed_model_parallel(name):
    """Which fills buffers on meta with zeros, so that every loss would be 0."""
    given_weights = [1.0, 2.0, 0.5]
    with torch.device("meta"):
        tasks = three_tasks_for(name)
        model = build(offers(name), device="meta", tasks=tasks)
        wrapped = MultiTaskTrain(model, LOSSES[name](tasks, task_weights=given_weights))
    with process_group(torch.device("cpu")):
        parallel = DistributedModelParallel(wrapped, device=torch.device("cpu"))
        value, _ = parallel(batch(4))
    assert value > 0.1
    assert wrapped.loss.task_weights.tolist() == given_weights


@pytest.mark.parametrize("name", weighted_losses)
def test_task_weights_are_filled_in_after_to_empty(name):
    loss = LOSSES[name](three_tasks_for(name), task_weights=[1.0, 2.0, 0.5]).to("meta").to_empty(device="cpu")
    loss.task_weights.fill_(0)
    loss.reset_parameters()
    assert loss.task_weights.tolist() == [1.0, 2.0, 0.5]
    LOSSES[name](three_tasks_for(name)).reset_parameters()  # where all are 1 there is nothing to fill in


FUNNEL = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)


# what a model predicts beside the probabilities, with the function that bounds it, [B, E] each
FREE = {"imputed_errors": F.softplus, "conversion_logits": lambda logit: logit}
FAR = torch.full((3, 1), 40.0, dtype=torch.float64)  # where a counterfactual tower ends, whose label is 1


def at_rest(name, read, click, buy, **arguments):
    """P(click), P(buy | click) and what else is predicted, where the gradient of the expected loss is 0, for a constant
    x. Probabilities are those that the loss says its logits stand for."""
    loss = LOSSES[name](chain(2), **arguments)
    true_logits = getattr(loss, "true_logits", lambda logits: logits)
    weights = 3 * torch.tensor([[1 - click], [click * (1 - buy)], [click * buy]], dtype=torch.float64).expand(3, 2)
    marginal, conditional = MarginalFromConditional(chain(2)), "conditional_logits" in read
    free = [name for name in read if name in FREE]
    of_rows = {"groups": torch.zeros(3, dtype=torch.long), "other_logits": torch.zeros(3, 2).double()}
    of_rows["counterfactual_logits"] = FAR

    def gradient(values):
        leaf = torch.tensor(values, requires_grad=True)
        logits = leaf[:2].expand(3, 2)
        further = of_rows | {"conditional_logits": logits}
        further |= {name: FREE[name](value).expand(3, 1) for name, value in zip(free, leaf[2:], strict=True)}
        value = loss(
            marginal(logits) if conditional else logits, FUNNEL, weights, **{name: further[name] for name in read}
        )
        return torch.autograd.grad(value, leaf)[0].numpy() / click

    truth = np.array([click, buy if conditional else click * buy])
    near = np.full(2, -1.5) if hasattr(loss, "true_logits") else np.log(truth / (1 - truth)) + 0.8
    start = [*near, *(-0.5 for _ in free)]
    found = scipy.optimize.root(gradient, start, tol=1e-12)
    assert np.abs(found.fun).max() < 1e-9
    p = true_logits(torch.tensor(found.x[:2])).sigmoid().numpy()
    others = [FREE[name](torch.tensor(value)).item() for name, value in zip(free, found.x[2:], strict=True)]
    return p[0], p[1] if conditional else p[1] / p[0], *others


@pytest.mark.parametrize(("name", "read"), [pair for pair in READ.values() if pair[0] != "delayed"])
@pytest.mark.parametrize("click", [0.1, 0.01])
def test_the_minimum_is_the_truth(name, read, click):
    found, bought, *_ = at_rest(name, read, click, 0.1)
    assert (found, bought) == pytest.approx((click, 0.1), rel=1e-3 if name == "dcmt" else 1e-6)


@pytest.mark.parametrize("click", [0.1, 0.01, 0.001])
def test_imputed_errors_are_the_errors_even_where_propensities_are_clipped(click):
    read = ("conditional_logits", "imputed_errors")
    _, bought, imputed = at_rest("counterfactual", read, click, 0.1, min_propensity=0.01)
    entropy = -(0.1 * np.log(0.1) + 0.9 * np.log(0.9))
    assert (bought, imputed) == pytest.approx((0.1, entropy), rel=1e-6)


@pytest.mark.parametrize(("click", "biased"), [(0.1, (0.089, 0.24)), (0.01, (0.0087, 0.27))])
def test_joint_imputation_is_biased_by_what_its_docstring_says(click, biased):
    read = ("conditional_logits", "imputed_errors")
    found, bought, _ = at_rest("counterfactual", read, click, 0.1, joint_imputation=True)
    assert (found, bought) == pytest.approx(biased, rel=0.01)


SOFT = [name for name in LOSSES if name in ("cross_entropy", "focal", "label_smoothing", "pairwise", "jrc")]


@pytest.mark.parametrize(("name", "read"), [pair for pair in READ.values() if pair[0] in SOFT])
def test_a_soft_label_is_a_row_of_each_label_with_its_share_of_the_weight(name, read):
    """In groups of one row, which are compared with none."""
    rng = np.random.default_rng(0)
    logits, _, weights, further = random_inputs(rng, 4, TASKS, read)
    further |= {"groups": torch.arange(4)} if "groups" in further else {}
    soft, loss = torch.tensor(rng.random((4, 3))), LOSSES[name](TASKS)
    twice = {name: torch.cat([x, x]) for name, x in further.items()}
    hard = torch.cat([torch.ones(4, 3), torch.zeros(4, 3)]).double()
    shares = torch.cat([soft, 1 - soft]) * weights.repeat(2, 1)
    as_rows = loss(logits.repeat(2, 1), hard, shares, **twice)
    torch.testing.assert_close(loss(logits, soft, weights, **further), 2 * as_rows)


@pytest.mark.parametrize("click", [0.1, 0.01])
def test_a_local_space_loss_with_the_dependence_rests_at_the_truth(click):
    found = at_rest("local_space", (), click, 0.2, dependence_weight=1.0)
    assert found == pytest.approx((click, 0.2), rel=1e-6)


def test_clipping_pulls_the_steps_of_the_dependence_apart_as_its_docstring_says():
    found, bought = at_rest("local_space", (), 0.2, 0.1, min_propensity=0.1, dependence_weight=1.0)
    assert found * (1 - bought) > 0.2 * 0.9 + 0.001


def test_clipping_raises_the_odds_of_the_local_space_loss_by_what_its_docstring_says():
    click, buy = 0.001, 0.1
    _, bought = at_rest("local_space", (), click, buy, min_propensity=1e-3)
    assert bought == pytest.approx(0.111, abs=0.0005)
    share = (click - click * buy) / (1 - click * buy)
    odds = [p / (1 - p) for p in (click * bought, click * buy)]
    assert odds[0] / odds[1] == pytest.approx(1e-3 / share, rel=1e-5)
