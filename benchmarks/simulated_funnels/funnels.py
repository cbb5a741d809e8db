"""Funnels whose true probabilities are known, and in which what is clicked also drives what is bought.

An impression has six ids. Every step happens with a probability whose logit is a sum of functions of the ids: one that
all steps share, the driver, and one of the step alone, each with mean 0 and variance 1. A click that leans on the
driver selects the rows that convert. An unobserved driver is in no id and adds to all logits; the truth is then the
mean over it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from torchrec_mtl import TaskChain
from torchrec_mtl.data import Field, Schema, Split
from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.schema import SPLITS

FIELD_SIZES = (10, 20, 50, 100, 200, 500)
OWN = 0.7  # weight of the function that is a step's alone
NUM_NODES = 31  # of the mean over the unobserved driver, which is normal
NUM_ROWS_FOR_INTERCEPTS, MOST_ROWS = 2**14, 40_000
SLOWEST, FASTEST, SPAN = 6.0, 0.5, 14.0  # days: mean delays by id of the third field, and what the rows span


@dataclass(frozen=True)
class Funnel:
    """A kind of funnel; rows of a seed have other effects of ids than those of another.

    Args:
        rates: share of each step among the rows that reach it.
        selection: weight of the driver in the click's logit; it is 1 in later steps.
        hidden: weight of the unobserved driver in every logit.
        interaction: share of the variance of each function that comes from products of two ids' effects, whose mean is
            0 given one of the two: nothing of it is a sum of effects.
        delay: whether the last step happens days after the row, so that labels of young rows are still 0.
        num_rows: rows to train on; half as many to validate and to test, and at most 40,000.
    """

    rates: tuple[float, ...] = (0.1, 0.15)
    selection: float = 0.5
    hidden: float = 0.0
    interaction: float = 0.0
    delay: bool = False
    num_rows: int = 80_000

    @property
    def schema(self) -> Schema:
        """Fields and steps: click, perhaps cart, buy."""
        names = ["click", *["cart"] * (len(self.rates) - 2), "buy"]
        fields = [Field(f"field_{place}", size) for place, size in enumerate(FIELD_SIZES)]
        return Schema("simulated", fields, TaskChain(names))


FUNNELS = {
    "mild": Funnel(),
    "strong": Funnel(selection=2.5),
    "mild, hidden": Funnel(hidden=1.0),
    "strong, hidden": Funnel(selection=2.5, hidden=1.0),
    "interactions": Funnel(interaction=0.9),
    "deep": Funnel(rates=(0.1, 0.3, 0.3)),
    "delays": Funnel(delay=True),
    "few": Funnel(num_rows=20_000),
    "many": Funnel(num_rows=200_000),
    "rare": Funnel(rates=(0.01, 0.05), num_rows=200_000),
}


class Truth(NamedTuple):
    """Of the test rows, ``[N]`` each; the last two are the same without an unobserved driver."""

    click: Array
    buy: Array
    buy_after_click: Array  # P(buy | click), what the data can tell
    buy_if_clicked: Array  # had every row been clicked


class Drawn(NamedTuple):
    """The rows of one seed, and the ids ``[N, F]`` of each split."""

    splits: dict[str, Split]
    ids: dict[str, Array]
    truth: Truth


def draw(funnel: Funnel, seed: int) -> Drawn:
    """Draws effects, then rows of three splits; the test rows' truth comes with them."""
    rng = np.random.default_rng(seed)
    scores = _Scores(funnel, rng)
    labels_of, ids, splits = {}, {}, {}
    intercepts = None
    for split in SPLITS:
        num_rows = funnel.num_rows if split == "train" else min(funnel.num_rows // 2, MOST_ROWS)
        ids[split] = np.stack([rng.choice(len(zipf), num_rows, p=zipf) for zipf in scores.frequencies], axis=1)
        logits = scores(ids[split])
        hidden = funnel.hidden * rng.normal(size=(num_rows, 1))
        if intercepts is None:
            intercepts = _intercepts(logits[:NUM_ROWS_FOR_INTERCEPTS], funnel)
        happened = rng.random(logits.shape) < _sigmoid(logits + intercepts + hidden)
        labels_of[split] = happened.cumprod(axis=1).astype(np.float32)
        if funnel.delay and split != "test":
            means = np.geomspace(FASTEST, SLOWEST, FIELD_SIZES[2])[ids[split][:, 2]]
            labels_of[split][:, -1] *= rng.exponential(means) < rng.uniform(0, SPAN, num_rows)
        columns = {field.name: column for field, column in zip(funnel.schema.fields, ids[split].T, strict=True)}
        splits[split] = Split(funnel.schema, columns, labels_of[split])
    return Drawn(splits, ids, truth_of(logits + intercepts, funnel.hidden))


def truth_of(logits: Array, hidden: float) -> Truth:
    """Means over the unobserved driver of products of the steps' probabilities, from logits ``[N, T]``."""
    nodes, weights = _normal(hidden)
    steps = _sigmoid(logits[..., None] + nodes)
    click, buy, if_clicked = (x @ weights for x in (steps[:, 0], steps.prod(axis=1), steps[:, 1:].prod(axis=1)))
    return Truth(click, buy, buy / click, if_clicked)


class _Scores:
    """The functions of the ids, as logits without intercepts ``[N, T]``."""

    def __init__(self, funnel: Funnel, rng: np.random.Generator) -> None:
        self.funnel, self.num_steps = funnel, len(funnel.rates)
        self.frequencies, self.effects = [], []
        for size in FIELD_SIZES:
            zipf = np.arange(1.0, size + 1) ** -0.8
            zipf = rng.permutation(zipf / zipf.sum())
            effects = rng.normal(size=(size, 2, 1 + self.num_steps))  # alone and in a product, for each function
            effects -= np.tensordot(zipf, effects, 1)
            self.frequencies.append(zipf)
            self.effects.append(effects / np.sqrt(np.tensordot(zipf, effects**2, 1)))

    def __call__(self, ids: Array) -> Array:
        of_fields = [effects[column] for effects, column in zip(self.effects, ids.T, strict=True)]
        alone = sum(x[:, 0] for x in of_fields) / np.sqrt(len(of_fields))
        pairs = list(zip(of_fields[::2], of_fields[1::2], strict=True))
        products = sum(a[:, 1] * b[:, 1] for a, b in pairs) / np.sqrt(len(pairs))
        share = self.funnel.interaction
        functions = np.sqrt(1 - share) * alone + np.sqrt(share) * products
        weights = np.array([self.funnel.selection, *[1.0] * (self.num_steps - 1)])
        return weights * functions[:, :1] + OWN * functions[:, 1:]


def _intercepts(logits: Array, funnel: Funnel) -> Array:
    """By bisection, so that each step has its rate among the rows that reach it."""
    nodes, weights = _normal(funnel.hidden)
    reached, found = np.ones((len(logits), len(nodes))), []
    for rate, logit in zip(funnel.rates, logits.T, strict=True):
        low, high = -50.0, 50.0
        for _ in range(50):
            middle = (low + high) / 2
            happened = reached * _sigmoid(logit[:, None] + middle + nodes)
            too_high = (happened @ weights).sum() > rate * (reached @ weights).sum()
            low, high = (low, middle) if too_high else (middle, high)
        found.append(middle)
        reached = happened
    return np.array(found)


def _normal(deviation: float) -> tuple[Array, Array]:
    """Nodes and weights of a mean over a normal driver of this standard deviation."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NUM_NODES if deviation else 1)
    return deviation * nodes, weights / weights.sum()


def _sigmoid(logits: Array) -> Array:
    return 1 / (1 + np.exp(-logits))
