"""Methods of balancing: from three tasks' losses and gradients to a weight for each."""

import torch

from tests.fuzz.cases.drawn import one_of
from tests.fuzz.cell import Case
from torchrec_mtl import TaskChain
from torchrec_mtl.training import balancing

CHAIN = TaskChain(["click", "cart", "buy"])


def _judge(given, method):
    """A second and a third batch are weighed too, and every weight is a number."""
    gradients = torch.tensor([[1.0, 0.5], [-1.0, 2.0], [0.1, -0.1]], dtype=torch.float64)
    for losses in ([0.7, 0.5, 0.1], [0.6, 0.5, 0.05], [0.6, 0.4, 0.1]):
        weights = method(torch.tensor(losses, dtype=torch.float64), gradients @ gradients.T)
        assert weights.shape == (len(given["tasks"]),)
        assert weights.isfinite().all()


def _case(method, **drawn):
    return Case(method, lambda rng: {"tasks": CHAIN, **{name: draw(rng) for name, draw in drawn.items()}}, _judge)


def _choice(*values):
    return lambda rng: one_of(rng, *values)


_GRADIENTS = _choice("shared", "representation")
CASES = {
    "Uncertainty": _case(balancing.Uncertainty),
    "DWA": _case(balancing.DWA, temperature=_choice(0.5, 2.0), interval=_choice(1, 2)),
    "Static": _case(balancing.Static, weights=_choice([1.0, 2.0, 0.0], (0.5, 0.5, 3.0))),
    "PCGrad": _case(balancing.PCGrad, gradients=_GRADIENTS),
    "MGDA": _case(balancing.MGDA, normalise=_choice("none", "l2", "loss", "loss+"), gradients=_GRADIENTS),
    "CAGrad": _case(
        balancing.CAGrad, c=_choice(0.0, 0.4), rescale=_choice("none", "square", "linear"), gradients=_GRADIENTS
    ),
    "GradNorm": _case(
        balancing.GradNorm,
        alpha=_choice(0.0, 1.5),
        learning_rate=_choice(0.025, 0.1),
        initial_losses=_choice("first_batch", "log2"),
    ),
    "FAMO": _case(balancing.FAMO, learning_rate=_choice(0.025, 0.1), decay=_choice(0.0, 1e-3)),
    "AlignedMTL": _case(balancing.AlignedMTL, gradients=_GRADIENTS),
}
