"""Computes rows from runs, and means, deviations and tests from rows."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs.compare.plan import Plan
from torchrec_mtl.jobs.compare.runs import Run, read_result
from torchrec_mtl.jobs.compare.table_models import TableModel
from torchrec_mtl.metrics import AUCS, Metric, gain, measured_as, rela_impr
from torchrec_mtl.metrics.metric import spaces_of
from torchrec_mtl.systems import System
from torchrec_mtl.tasks import TaskForest

Key = tuple[str, str, str]  # task, space, name under which the metric is measured there
PROPOSED = ("bpcm", "tafe")
BASE = "single_task"


def finished(runs: Sequence[Run]) -> list[tuple[Run, dict[str, Any]]]:
    """The runs that have a result, each with its result."""
    results = [(run, read_result(run)) for run in runs]
    return [(run, result) for run, result in results if result is not None]


def result_rows(plan: Plan, dataset: str) -> list[dict[str, Any]]:
    """A row for every metric of every finished run: the content of ``results.csv``."""
    rows = []
    for run, result in finished([*plan.search_runs(), *plan.final_runs(), *plan.sweep_runs()]):
        labels = {
            "dataset": dataset,
            "stage": run.stage,
            "model": run.config.name,
            "variant": run.variant,
            "seed": run.config.seed,
        }
        for split in ("valid", "test"):
            rows += [{**labels, "split": split, **row} for row in result[split]]
        for metric in ("valid_score", "best_step", "samples_per_second", "num_parameters", "seconds"):
            rows.append({**labels, "split": "", "task": "", "space": "", "metric": metric, "value": result[metric]})
    return rows


@dataclass(frozen=True)
class Scores:
    """The values of a metric on the test split for one system.

    Args:
        system: system that was measured.
        seeds: seeds of the runs, in order.
        values: value for each seed, by (task, space, measured name).
    """

    system: System | TableModel
    seeds: tuple[int, ...]
    values: Mapping[Key, np.ndarray]

    @property
    def title(self) -> str:
        """Title of the system."""
        return self.system.title

    def mean(self, key: Key) -> float:
        return float(self.values[key].mean())

    def deviation(self, key: Key) -> float:
        """Sample standard deviation over the seeds; NaN for one seed."""
        return float(self.values[key].std(ddof=1)) if len(self.seeds) > 1 else math.nan


def later(tasks: TaskForest) -> list[tuple[str, str]]:
    """Every task that needs another, with its space where that one happened."""
    return [(task, space) for task in tasks for space in tasks.spaces(task)[1:]]


def keys(tasks: TaskForest, name: str, metric: Metric) -> list[Key]:
    """Where and under which names the metric ``name`` is measured: over all impressions first."""
    spaces = [(task, space) for task in tasks for space in spaces_of(metric, tasks, task)]
    whole = [(task, space, name) for task, space in spaces if space == "impressions"]
    names = measured_as(name, metric, "after a step")
    return whole + [(task, space, each) for each in names for task, space in spaces if space != "impressions"]


def scores(plan: Plan, wanted: Sequence[Key]) -> dict[str, Scores]:
    """The values ``wanted`` on the test split in the final runs, by system, in the order of the protocol.

    Raises:
        InputError: if a run was made without one of them.
    """
    by_system: dict[str, list[tuple[int, dict[Key, float]]]] = defaultdict(list)
    for run, result in finished(plan.final_runs()):
        values = {(row["task"], row["space"], row["metric"]): row["value"] for row in result["test"]}
        for _, _, measured in (key for key in wanted if key not in values):
            raise InputError(
                f"{run.directory}: was made without `{measured}`; remove the folder, and its line of finished runs, to "
                "make it again"
            )
        by_system[run.config.name].append((run.config.seed, {key: values[key] for key in wanted}))
    collected = {}
    for system in plan.systems:
        if system.name in by_system:
            runs = sorted(by_system[system.name], key=lambda pair: pair[0])
            arrays = {key: np.array([of_seed[key] for _, of_seed in runs]) for key in runs[0][1]}
            collected[system.name] = Scores(system, tuple(seed for seed, _ in runs), arrays)
    return collected


def best_baseline(collected: Mapping[str, Scores], key: Key, metric: Metric) -> str | None:
    """The system with the best mean, apart from the papers' own models and ablations."""
    baselines = [s for s, own in collected.items() if s not in PROPOSED and own.system.ablation_of is None]
    return max(baselines, key=lambda system: metric.merit(collected[system].mean(key)), default=None)


def p_value(one: Scores, other: Scores, key: Key) -> float:
    """P-value of a two-sided paired t-test over common seeds.

    NaN where it is not defined: with fewer than two seeds, or where all differences are the same, so that their spread
    says nothing.
    """
    common = [seed for seed in one.seeds if seed in other.seeds]
    if len(common) < 2:
        return math.nan
    first, second = (np.array([s.values[key][s.seeds.index(seed)] for seed in common]) for s in (one, other))
    is_constant = np.ptp(first - second) <= 1e-12 * np.abs(np.concatenate([first, second])).max()
    return math.nan if is_constant else float(stats.ttest_rel(first, second).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's correction (1979): p-values under which the chance of any false discovery among all tests is kept.

    NaN, where there is no test, stays NaN and does not count.

    Example::

        >>> holm([0.01, 0.04, math.nan, 0.03])
        [0.03, 0.06, nan, 0.06]
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    corrected, highest = [math.nan] * len(p_values), 0.0
    for rank, (p, place) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        corrected[place] = highest
    return corrected


def noise(collected: Mapping[str, Scores], key: Key) -> tuple[float, float]:
    """Standard deviation over seeds, pooled over the networks without ablations, and highest mean minus lowest mean."""
    models = [own for own in collected.values() if isinstance(own.system, System) and own.system.ablation_of is None]
    means = [own.mean(key) for own in models]
    return math.sqrt(np.mean([own.deviation(key) ** 2 for own in models])), max(means) - min(means)


def comparison_rows(
    collected: Mapping[str, Scores], tasks: TaskForest, name: str, metric: Metric
) -> list[dict[str, Any]]:
    """A row for each system, task and space of the metric ``name``: mean, deviation, test against the best baseline.

    ``against`` is the title of the baseline, and ``difference`` the mean minus the baseline's: negative is better where
    lower values are. ``p_holm`` is ``p_value`` by Holm's correction for all tests of one question: which system is
    best, or what a model owes to its parts. For AUC, rows also have RelaImpr and Gain of the means over Single-Task.
    """
    rows = []
    for system, own in collected.items():
        for key in keys(tasks, name, metric):
            row: dict[str, Any] = {"model": system, "title": own.title, "ablation_of": own.system.ablation_of}
            row |= {"task": key[0], "space": key[1]}
            row |= {"metric": key[2], "seeds": len(own.seeds), "mean": own.mean(key), "std": own.deviation(key)}
            if key[2] in AUCS and BASE in collected:
                base = collected[BASE].mean(key)
                row |= {"rela_impr": rela_impr(own.mean(key), base), "gain": gain(own.mean(key), base)}
            against = own.system.ablation_of or best_baseline(collected, key, metric)
            other = collected.get(against or "", own)
            if other is not own:
                row |= {"against": other.title, "difference": own.mean(key) - other.mean(key)}
                row |= {"p_value": p_value(own, other, key)}
            rows.append(row)
    for tested in tests(rows).values():
        for row, corrected in zip(tested, holm([row["p_value"] for row in tested]), strict=True):
            row["p_holm"] = corrected
    return rows


def tests(rows: Sequence[dict[str, Any]]) -> dict[str | None, list[dict[str, Any]]]:
    """The rows that were tested, by the model of which they change one thing: None for systems that change no other."""
    grouped: dict[str | None, list[dict[str, Any]]] = {}
    for row in rows:
        if "p_value" in row:
            grouped.setdefault(row["ablation_of"], []).append(row)
    return grouped
