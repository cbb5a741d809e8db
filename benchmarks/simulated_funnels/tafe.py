"""Asks why TAFE differs between seeds: ``python -m benchmarks.simulated_funnels.tafe``.

Funnel ``strong`` of `benchmarks.simulated_funnels`, one draw of its rows, so that seeds differ in first weights and in
the order of rows alone. TAFE as it stands there, TAFE with one thing changed, and two other systems, each with five
seeds. Besides that program's figures, means over seeds with standard deviations:

- buy auc: of the test rows;
- step: at which the least validation loss was found, of at most 300;
- soft: share of the selections z that lie between 0 and 1 at that step; selected: mean of z;
- agreement: rank correlation of p(buy | click) over unclicked rows between two seeds, mean over their pairs.

A quarter of an hour on a core of one's own.
"""

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from benchmarks import record
from benchmarks.simulated_funnels import __main__ as program
from benchmarks.simulated_funnels import models
from benchmarks.simulated_funnels.funnels import FUNNELS, Drawn, draw
from torchrec_mtl.data.lists import Array
from torchrec_mtl.modules import DynamicSelector
from torchrec_mtl.systems import SYSTEMS

FUNNEL, SEEDS = "strong", 5
LONGER = 3 * models.MOST_STEPS
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "as compared": ("tafe", {}),
    "64 points": ("tafe", {"num_inducing_points": 64}),
    "4 points": ("tafe", {"num_inducing_points": 4}),
    "points as a mask": ("tafe", {"selection": "mask"}),
    "gate soft to the end": ("tafe", {"schedule": (10.0, 0.0, 1e-3)}),
    "gate closed at half": ("tafe", {"schedule": (10.0, 20.0 / models.MOST_STEPS, 1e-3)}),
    "no gate": ("tafe", {"sample_wise": False}),
    "no indicators": ("tafe", {"task_indicators": False}),
    "one layer": ("tafe", {"num_layers": 1}),
    "width 32": ("tafe", {"embedding_dim": 32}),
    "900 steps": ("tafe", {"most_steps": LONGER}),
    "width 32, 900 steps": ("tafe", {"embedding_dim": 32, "most_steps": LONGER}),
    "conditional towers": ("tafe", {"probabilities": "conditional"}),
    "conditional towers, width 32": ("tafe", {"probabilities": "conditional", "embedding_dim": 32}),
    "Shared-Bottom": ("shared_bottom", {}),
    "ESMM": ("esmm", {}),
}
QUICK_VARIANTS = ("as compared", "no gate")


def selections(model: nn.Module, drawn: Drawn) -> Tensor | None:
    """The selections z of the validation rows, ``[N, K]``; None of a model that has no selector."""
    found: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, z: found.append(z))
        for module in model.modules()
        if isinstance(module, DynamicSelector)
    ]
    models.logits_of(model, drawn.splits["valid"])
    for hook in hooks:
        hook.remove()
    return torch.cat(found) if found else None


def measure(system: str, given: Mapping[str, object], drawn: Drawn, seed: int) -> tuple[record.Row, Array]:
    """The figures of one training, and its p(buy | click) of the unclicked test rows."""
    model = models.train(SYSTEMS[system], drawn, seed, **given)
    click, buy = program.probabilities(model, drawn)
    labels = drawn.splits["test"].arrays["labels"]
    clicked = labels[:, 0] == 1
    figures = program.figures(drawn.truth, clicked, click, buy)
    figures["buy auc"] = float(roc_auc_score(labels[:, -1], buy))
    z = selections(model, drawn)
    if z is not None:
        selector = next(module for module in model.modules() if isinstance(module, DynamicSelector))
        figures["step"] = int(selector.step)
        figures["soft"], figures["selected"] = float(((z > 0) & (z < 1)).double().mean()), float(z.mean())
    return figures, (buy / click)[~clicked]


def main() -> None:
    arguments = record.parse("simulated_funnels_tafe", __doc__)
    seeds = range(arguments.repeats or (2 if arguments.quick else SEEDS))
    rows = program.QUICK_ROWS if arguments.quick else FUNNELS[FUNNEL].num_rows
    drawn = draw(replace(FUNNELS[FUNNEL], num_rows=rows), seed=0)
    with record.Results(arguments.results) as results:
        for name, (system, given) in VARIANTS.items():
            if arguments.quick and name not in QUICK_VARIANTS:
                continue
            figures, found = zip(*(measure(system, given, drawn, seed) for seed in seeds), strict=True)
            (row,) = program.rows_of([{name: each} for each in figures], {"funnel": FUNNEL})
            pairs = [spearmanr(a, b).statistic for a, b in combinations(found, 2)]
            row["agreement"] = round(float(np.mean(pairs)), 3) if pairs else None
            results.add(row)
            print(name, flush=True)


if __name__ == "__main__":
    main()
