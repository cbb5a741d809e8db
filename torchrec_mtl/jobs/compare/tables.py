"""The HTML tables of one metric, from what `summary` computes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torchrec_mtl.data import Schema
from torchrec_mtl.jobs.compare import html, summary
from torchrec_mtl.jobs.compare.protocols import Published
from torchrec_mtl.metrics import Metric

Row = dict[str, Any]
BETTER = {"higher": "higher is better", "lower": "lower is better", "one": "nearer to 1 is better"}


def _by_system(rows: Sequence[Row]) -> dict[str, list[Row]]:
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(row["model"], []).append(row)
    return grouped


def _mean_cell(row: Row) -> str:
    return f"{html.number(row['mean'], '.4f')} ± {html.number(row['std'], '.4f')}"


def _test_cell(row: Row) -> str:
    if "against" not in row:
        return "-"
    p = "not defined" if math.isnan(row["p_holm"]) else f"{row['p_holm']:.2g}"
    return f"{row['difference']:+.4f}, p {p}"


def _column(task: str, space: str, measured: str) -> str:
    """The title of a column; it names the score that ranks the rows where there are two."""
    score = measured.split("_")[0]
    return f"{task}, {space}" + (f", {score}" if score in ("conditional", "marginal") else "")


def value_tables(rows: Sequence[Row], metric: Metric) -> list[str]:
    """The metric in every space, RelaImpr and Gain if the rows have them, and the difference to the best baseline."""
    systems = {s: own for s, own in _by_system(rows).items() if own[0]["ablation_of"] is None}
    names = [_column(row["task"], row["space"], row["metric"]) for row in next(iter(systems.values()))]
    rules = [number for number, system in enumerate(systems) if system == summary.PROPOSED[0]]
    parts = [
        html.table(
            ["", *names],
            [[own[0]["title"], *map(_mean_cell, own)] for own in systems.values()],
            f"Test {metric.title} ({BETTER[metric.better]}), mean ± standard deviation over seeds",
            rules,
        )
    ]
    if "rela_impr" in rows[0]:
        cells = [
            [
                own[0]["title"],
                *(f"{html.number(r['rela_impr'], '+.2%')} / {html.number(r['gain'], '+.2%')}" for r in own),
            ]
            for own in systems.values()
        ]
        parts.append(html.table(["", *names], cells, "RelaImpr / Gain of the mean AUC over Single-Task", rules))
    cells = [[own[0]["title"], *map(_test_cell, own)] for own in systems.values()]
    seeds = max(row["seeds"] for row in rows)
    caption = (
        f"Mean {metric.title} less the best baseline's of that column, and p of the paired t-test over {seeds} seeds, "
        f"by Holm's correction for {_num_tests(rows, None)} tests"
    )
    return [*parts, html.table(["", *names], cells, caption, rules)]


def _num_tests(rows: Sequence[Row], changed: str | None) -> int:
    return sum(not math.isnan(row["p_value"]) for row in summary.tests(rows).get(changed, ()))


def share_table(collected: Mapping[str, summary.Scores]) -> str:
    """The share of test rows on which each system contradicts the funnel, mean over seeds."""
    keys = list(next(iter(collected.values())).values)
    rows = [[own.title, *(f"{own.mean(key):.2%}" for key in keys)] for own in collected.values()]
    caption = "Share of the rows with p_t > p_t-1; conditional: ranked by p_t / p_t-1; marginal: ranked by p_t"
    return html.table(["", *(f"{task}, {space}" for task, space, _ in keys)], rows, caption)


def noise_table(collected: Mapping[str, summary.Scores]) -> str:
    """The spread over seeds and over models."""
    keys = list(next(iter(collected.values())).values)
    deviations, ranges = zip(*(summary.noise(collected, key) for key in keys), strict=True)
    rows = [
        ["standard deviation over seeds, pooled", *(html.number(value, ".4f") for value in deviations)],
        ["highest mean less lowest", *(html.number(value, ".4f") for value in ranges)],
    ]
    return html.table(["", *(_column(*key) for key in keys)], rows, "Noise and differences, all models")


def ablation_tables(rows: Sequence[Row], metric: Metric) -> list[str]:
    """The papers' models with one thing changed at a time; no table if no ablation or other reading was run."""
    grouped = _by_system(rows)
    parts = []
    for whole in summary.PROPOSED:
        ablations = [system for system, own in grouped.items() if own[0]["ablation_of"] == whole]
        if whole in grouped and ablations:
            tasks = [row["task"] for row in grouped[whole] if row["space"] == "impressions"]
            cells = [[grouped[whole][0]["title"], *map(_mean_cell, grouped[whole][: len(tasks)])]]
            for own in (grouped[system] for system in ablations):
                cells.append(
                    [own[0]["title"], *(f"{_mean_cell(row)} ({_test_cell(row)})" for row in own[: len(tasks)])]
                )
            base = grouped[whole][0]["title"]
            caption = (
                f"One thing changed: test {metric.title}, all impressions (difference to {base}; p by Holm's "
                f"correction for {_num_tests(rows, whole)} tests, those after a step included)"
            )
            parts.append(html.table(["", *tasks], cells, caption))
    return parts


def published_table(published: Published, rows: Sequence[Row], schema: Schema) -> str:
    """AUCs beside the paper's: a column of the paper is beside every AUC of the task of the same name."""
    shown = [task for task in published.tasks if task in schema.tasks.names]
    cells, names = [], [""]
    for system, own in _by_system(rows).items():
        if system not in published.aucs:
            continue
        names, row = [""], [own[0]["title"]]
        for task in shown:
            here = [each for each in own if each["task"] == task]
            names += [*(f"{_column(task, r['space'], r['metric'])}, here" for r in here), f"{task}, published"]
            row += [*map(_mean_cell, here), f"{published.aucs[system][published.tasks.index(task)]:.4f}"]
        cells.append(row)
    sizes = f"Its test split has {published.num_test_rows:g} M rows, this one {schema.num_rows['test'] / 1e6:.3g} M."
    absent = ", ".join(task for task in published.tasks if task not in shown)
    caption = f"{published.source} {sizes}" + (f" Not a task of this data: {absent}." if absent else "")
    return html.table(names, cells, caption)
