"""Measures who finds p(buy | click) over all impressions: ``python -m benchmarks.simulated_funnels``.

Ten kinds of funnels (`funnels.FUNNELS`), whose truth is known; what drives clicks also drives purchases:

- ``mild``: 80,000 rows, a tenth clicked, .15 of those bought; clicks lean on the driver of purchases with weight .5;
- ``strong``: with weight 2.5, so that unclicked rows are unlike clicked ones;
- ``mild, hidden``, ``strong, hidden``: besides, a driver of both that no feature has;
- ``interactions``: nine tenths of the variance are products of two ids' effects;
- ``deep``: click, cart, buy; ``delays``: purchases take days, and labels of young rows are still 0;
- ``few``, ``many``: ``mild`` with 20,000 and 200,000 rows; ``rare``: 200,000 rows, of which .05 % are bought.

Models are the library's, of like sizes, each with its loss; beside them ESMM's architecture trained on clicked rows,
Shared-Bottom with theorem 2.1's loss, logistic regression and LightGBM fitted on clicked rows or as p(buy) / p(click)
on all, and ``constant``: the share of buyers among clicked rows. Validation chooses each one's weights or size.

A row is a funnel and a model; figures are of test rows, against true probabilities, means over seeds with standard
deviations, and `median` is that of `error` over seeds:

- error: log loss of p(buy | click) less that of the truth, over all impressions, in millinats; ``clicked error`` and
  ``unclicked error`` over those rows; ``error if clicked`` beside the truth had every impression been clicked, which is
  another where a driver is unobserved;
- correlation: of the prediction with the truth in the unclicked space, by ranks;
- bias: mean prediction over the mean truth less 1, over all impressions, and over clicked ones;
- buy error: log loss of p(buy) less that of the truth, in millinats; slope: of the truth on the prediction, in logits.

A ratio p(buy) / p(click) above .999 counts as that. Half an hour on a core of one's own. ``--quick`` has no LightGBM,
which is installed on first use.
"""

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from scipy.stats import spearmanr
from torch import nn

from benchmarks import record
from benchmarks.simulated_funnels import models, tables
from benchmarks.simulated_funnels.funnels import FUNNELS, Drawn, Funnel, Truth, draw
from torchrec_mtl.data.lists import Array

SEEDS = 3
LEAST, MOST = 1e-6, 0.999
QUICK_ROWS, QUICK_MODELS = 2_000, ("shared_bottom", "esmm, clicked rows")


def figures(truth: Truth, clicked: Array, click: Array, buy: Array) -> record.Row:
    """How far predicted p(click) and p(buy), ``[N]`` each, are from the truth."""
    p, f = truth.buy_after_click, np.clip(buy / click, LEAST, MOST)
    rows = {"": slice(None), "clicked ": clicked, "unclicked ": ~clicked}
    found = {f"{name}error": 1e3 * excess(p[at], f[at]).mean() for name, at in rows.items()}
    found["error if clicked"] = 1e3 * excess(truth.buy_if_clicked, f).mean()
    varies = np.ptp(f) > 0
    found["correlation"] = spearmanr(p[~clicked], f[~clicked]).statistic if varies else 0.0
    found["bias"] = f.mean() / p.mean() - 1
    found["clicked bias"] = f[clicked].mean() / p[clicked].mean() - 1
    found["slope"] = np.polyfit(logit(f), logit(p), 1)[0] if varies else 0.0
    found["buy error"] = 1e3 * excess(truth.buy, np.clip(buy, 1e-9, MOST)).mean()
    return {name: float(value) for name, value in found.items()}


def excess(p: Array, f: Array) -> Array:
    """Expected log loss of predictions ``f`` less that of the truth ``p``."""
    return p * np.log(p / f) + (1 - p) * np.log((1 - p) / (1 - f))


def logit(p: Array) -> Array:
    """Log of the odds."""
    return np.log(p) - np.log1p(-p)


def predictions(drawn: Drawn, seed: int, quick: bool) -> Iterator[tuple[str, Array, Array]]:
    """Yields name, p(click) and p(buy) of every candidate."""
    labels = drawn.splits["train"].arrays["labels"]
    rates = labels[:, 0].mean(), labels[:, -1].mean()
    yield ("constant", *(np.full(len(drawn.truth.click), rate, float) for rate in rates))
    for name, fit in tables.FITS.items():
        if not (quick and name == "LightGBM"):
            for way, found in tables.predictions(fit, drawn).items():
                yield (f"{name}, {way}", *found)
    for name, system in models.CANDIDATES.items():
        if not quick or name in QUICK_MODELS:
            yield name, *probabilities(models.train(system, drawn, seed), drawn)


def probabilities(model: nn.Module, drawn: Drawn) -> tuple[Array, Array]:
    """P(click) and p(buy) of the test rows."""
    found = models.logits_of(model, drawn.splits["test"]).sigmoid().numpy()
    return found[:, 0], found[:, -1]


def measure(funnel: Funnel, seed: int, quick: bool) -> dict[str, record.Row]:
    """The figures of every candidate on the rows of one seed."""
    drawn = draw(funnel, seed)
    clicked = drawn.splits["test"].arrays["labels"][:, 0] == 1
    return {name: figures(drawn.truth, clicked, *found) for name, *found in predictions(drawn, seed, quick)}


def rows_of(runs: list[dict[str, record.Row]], about: record.Row) -> list[record.Row]:
    """A row for each candidate: means over seeds, with standard deviations."""
    rows = []
    for name in runs[0]:
        row = {**about, "model": name}
        for figure in runs[0][name]:
            values = [run[name][figure] for run in runs]
            row[figure] = round(statistics.mean(values), 3)
            row[f"{figure}, deviation"] = round(statistics.stdev(values), 3) if len(values) > 1 else 0.0
        rows.append({**row, **record.spread([run[name]["error"] for run in runs], "millinats")})
    return rows


def main() -> None:
    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--funnels", nargs="+", default=list(FUNNELS), choices=list(FUNNELS), metavar="FUNNEL")

    arguments = record.parse("simulated_funnels", __doc__, options)
    seeds = range(arguments.repeats or (1 if arguments.quick else SEEDS))
    with record.Results(arguments.results) as results:
        for name in arguments.funnels:
            funnel = replace(FUNNELS[name], num_rows=QUICK_ROWS) if arguments.quick else FUNNELS[name]
            runs = [measure(funnel, seed, arguments.quick) for seed in seeds]
            results.add(*rows_of(runs, {"funnel": name, "rows": funnel.num_rows}))
            print(name, flush=True)


if __name__ == "__main__":
    main()
