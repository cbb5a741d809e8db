"""The HTML tables of one metric, from what `summary` computes."""

from collections.abc import Mapping, Sequence
from typing import Any

from torchrec_mtl.jobs.compare import html, summary
from torchrec_mtl.jobs.compare.protocols import Protocol
from torchrec_mtl.metrics import Metric
from torchrec_mtl.tasks import TaskForest

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
    return f"{row['difference']:+.4f}, p {html.number(row['p_value'], '.2g')}"


def value_tables(rows: Sequence[Row], tasks: TaskForest, metric: Metric) -> list[str]:
    """The metric in every space, RelaImpr and Gain if the rows have them, and the difference to the best baseline."""
    systems = {s: own for s, own in _by_system(rows).items() if own[0]["ablation_of"] is None}
    names = [f"{task}, {space}" for task, space in summary.keys(tasks)]
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
        f"Mean {metric.title} less the best baseline's of that column, and p of the paired t-test over {seeds} seeds"
    )
    return [*parts, html.table(["", *names], cells, caption, rules)]


def noise_table(collected: Mapping[str, summary.Scores], tasks: TaskForest) -> str:
    """The spread over seeds and over models."""
    keys = summary.keys(tasks)
    deviations, ranges = zip(*(summary.noise(collected, key) for key in keys), strict=True)
    rows = [
        ["standard deviation over seeds, pooled", *(html.number(value, ".4f") for value in deviations)],
        ["highest mean less lowest", *(html.number(value, ".4f") for value in ranges)],
    ]
    return html.table(["", *(f"{task}, {space}" for task, space in keys)], rows, "Noise and differences, all models")


def ablation_tables(rows: Sequence[Row], tasks: TaskForest, metric: Metric) -> list[str]:
    """The papers' models with one part left out at a time; no table if no ablation was run."""
    grouped = _by_system(rows)
    names = [task for task, _ in summary.keys(tasks)[: len(tasks)]]
    parts = []
    for whole in summary.PROPOSED:
        ablations = [system for system, own in grouped.items() if own[0]["ablation_of"] == whole]
        if whole in grouped and ablations:
            cells = [[grouped[whole][0]["title"], *map(_mean_cell, grouped[whole][: len(tasks)])]]
            for own in (grouped[system] for system in ablations):
                cells.append(
                    [own[0]["title"], *(f"{_mean_cell(row)} ({_test_cell(row)})" for row in own[: len(tasks)])]
                )
            base = grouped[whole][0]["title"]
            caption = f"Without a part: test {metric.title}, all impressions (difference to {base}, paired t-test)"
            parts.append(html.table(["", *names], cells, caption))
    return parts


def published_table(protocol: Protocol, rows: Sequence[Row], tasks: TaskForest) -> str:
    """AUCs beside those of the paper."""
    cells = []
    for system, own in _by_system(rows).items():
        if system in protocol.published:
            pairs = zip(own[: len(tasks)], protocol.published[system], strict=False)
            cells.append([own[0]["title"], *(cell for r, p in pairs for cell in (_mean_cell(r), f"{p:.4f}"))])
    names = [name for task in tasks for name in (f"{task}, here", "published")]
    return html.table(["", *names], cells, protocol.source)
