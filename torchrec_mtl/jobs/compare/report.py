"""A comparison's report: ``results.csv``, ``comparison.csv``, ``settings.json`` and ``report.html``."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from torchrec_mtl.data import Schema
from torchrec_mtl.files import write_whole
from torchrec_mtl.jobs.compare import efficiency, figures, html, summary
from torchrec_mtl.jobs.compare.plan import SWEPT, Plan
from torchrec_mtl.jobs.compare.runs import Run
from torchrec_mtl.jobs.compare.selection import read_selection
from torchrec_mtl.jobs.registry import MODELS
from torchrec_mtl.tasks import TaskChain

Row = dict[str, Any]


def _csv(rows: Sequence[Row]) -> str:
    stream = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _by_system(rows: Sequence[Row]) -> dict[str, list[Row]]:
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(row["model"], []).append(row)
    return grouped


def _auc_cell(row: Row) -> str:
    return f"{html.number(row['auc_mean'], '.4f')} ± {html.number(row['auc_std'], '.4f')}"


def _test_cell(row: Row) -> str:
    if "against" not in row:
        return "-"
    return f"{row['difference']:+.4f}, p {html.number(row['p_value'], '.2g')}"


def _auc_tables(rows: Sequence[Row], tasks: TaskChain) -> list[str]:
    """AUC in every space; RelaImpr and Gain; difference to the best baseline."""
    systems = {s: own for s, own in _by_system(rows).items() if MODELS[s].ablation_of is None}
    names = [f"{task}, {space}" for task, space in summary.keys(tasks)]
    rules = [number for number, system in enumerate(systems) if system == summary.PROPOSED[0]]
    parts = [
        html.table(
            ["", *names],
            [[own[0]["title"], *map(_auc_cell, own)] for own in systems.values()],
            "Test AUC, mean ± standard deviation over seeds",
            rules,
        )
    ]
    if summary.BASE in systems:
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
    caption = f"Mean AUC less the best baseline's of that column, and p of the paired t-test over {seeds} seeds"
    return [*parts, html.table(["", *names], cells, caption, rules)]


def _noise_table(collected: Mapping[str, summary.Scores], tasks: TaskChain) -> str:
    keys = summary.keys(tasks)
    deviations, ranges = zip(*(summary.noise(collected, key) for key in keys), strict=True)
    rows = [
        ["standard deviation over seeds, pooled", *(html.number(value, ".4f") for value in deviations)],
        ["highest mean less lowest", *(html.number(value, ".4f") for value in ranges)],
    ]
    return html.table(["", *(f"{task}, {space}" for task, space in keys)], rows, "Noise and differences, all models")


def _ablation_tables(rows: Sequence[Row], tasks: TaskChain) -> list[str]:
    grouped = _by_system(rows)
    names = [task for task, _ in summary.keys(tasks)[: len(tasks)]]
    parts = []
    for whole in summary.PROPOSED:
        ablations = [system for system in grouped if MODELS[system].ablation_of == whole]
        if whole in grouped and ablations:
            cells = [[MODELS[whole].title, *map(_auc_cell, grouped[whole][: len(tasks)])]]
            for own in (grouped[system] for system in ablations):
                cells.append([own[0]["title"], *(f"{_auc_cell(row)} ({_test_cell(row)})" for row in own[: len(tasks)])])
            caption = f"Without a part: test AUC, all impressions (difference to {MODELS[whole].title}, paired t-test)"
            parts.append(html.table(["", *names], cells, caption))
    return parts


def _published(plan: Plan, rows: Sequence[Row], tasks: TaskChain) -> list[str]:
    if not plan.protocol.published:
        return []
    cells = []
    for system, own in _by_system(rows).items():
        if system in plan.protocol.published:
            pairs = zip(own[: len(tasks)], plan.protocol.published[system], strict=False)
            cells.append([own[0]["title"], *(cell for r, p in pairs for cell in (_auc_cell(r), f"{p:.4f}"))])
    names = [name for task in tasks for name in (f"{task}, here", "published")]
    return [html.heading("Beside the paper"), html.table(["", *names], cells, plan.protocol.source)]


def _mean_aucs(result: Mapping[str, Any], tasks: TaskChain) -> dict[str, float]:
    rows = {(r["task"], r["space"], r["metric"]): r["value"] for r in result["valid"]}
    aucs = {task: rows[task, "impressions", "auc"] for task in tasks}
    return {**aucs, "mean": float(np.mean(list(aucs.values())))}


def _sweep(plan: Plan, tasks: TaskChain) -> list[str]:
    if len(plan.protocol.sweep) != 2:
        return []
    first, second = plan.protocol.sweep
    points = {}
    for run, result in summary.finished(plan.sweep_runs()):
        values = dict(setting.split("=") for setting in run.variant.split(","))
        points[float(values[first]), float(values[second])] = _mean_aucs(result, tasks)
    if not points:
        return []
    told = f"Validation AUC of {MODELS[SWEPT].title}, first seed, over {first} and {second}"
    return [html.heading("Sweep"), html.picture(figures.heat_maps(points, (first, second)), told)]


def _efficiency(plan: Plan) -> list[str]:
    file = plan.directory / efficiency.FILE
    if not file.is_file():
        return []
    measured = json.loads(file.read_text())
    cells = [
        [
            MODELS[row["model"]].title,
            *(
                f"{row[f'{name}_ratio']:.2f} ({row[f'{name}_ratio_low']:.2f}-{row[f'{name}_ratio_high']:.2f})"
                for name in ("train", "infer")
            ),
            f"{row['train_samples_per_second']:,.0f}",
            f"{row['infer_samples_per_second']:,.0f}",
            f"{row['parameter_mb']:.2f}",
        ]
        for row in measured["rows"]
    ]
    about = f"{measured['device']}, {measured['threads']} thread(s), load {measured['load']:.1f}, {measured['date']}"
    header = ["", "training / Shared-Bottom", "inference / Shared-Bottom", "training rows/s", "inference rows/s", "MB"]
    caption = f"Median of {measured['rounds']} interleaved rounds (all but the extremes). {about}"
    return [
        html.heading("Efficiency"),
        html.table(header, cells, caption),
        html.picture(figures.efficiency_bars(measured["rows"]), "TAFE figure 8, on this data and machine"),
    ]


def _tafe_figures(plan: Plan) -> list[str]:
    made = [
        (run, result)
        for run, result in summary.finished(plan.final_runs())
        if run.config.model == "tafe" and (run.directory / "checkpoints").is_dir()
    ]
    if not made:
        return []
    run, result = made[0]
    selection = read_selection(run)
    steps = figures.smooth_steps(selection.schedule, result["best_step"])
    rates = figures.selection_rates(selection)
    return [
        html.heading("TAFE's dynamic selector"),
        html.picture(steps, "TAFE figure 5: the dynamic activation with this run's schedule"),
        html.picture(rates, "TAFE figures 7a and 7b, on samples of the validation split, first seed"),
    ]


def _search(plan: Plan) -> list[str]:
    runs = plan.search_runs()
    if not runs:
        return []
    choices = plan.choices()
    results = {(run.config.model, run.variant): result for run, result in summary.finished(runs)}
    cells = []
    for system in plan.searched:
        row = [MODELS[system].title]
        for candidate in range(len(plan.protocol.search)):
            result = results.get((system, f"candidate-{candidate}"))
            mark = " *" if choices.get(system) == candidate else ""
            row.append("-" if result is None else f"{result['valid_mean_auc']:.4f}{mark}")
        cells.append(row)
    names = [[setting.removeprefix("training.") for setting in candidate] for candidate in plan.protocol.search]
    header = ["", *(", ".join(candidate) for candidate in names)]
    caption = "Mean validation AUC of every candidate, first seed; * is taken for all seeds and ablations"
    return [html.heading("What the search chose"), html.table(header, cells, caption)]


def _protocol(plan: Plan, schema: Schema, made: Sequence[tuple[Run, Mapping[str, Any]]]) -> list[str]:
    commits = sorted({result["commit"] for _, result in made})
    devices = sorted({result["device"] for _, result in made})
    versions = made[0][1]["versions"]
    rows = ", ".join(f"{split} {count:,}" for split, count in schema.num_rows.items())
    told = [
        f"Data: {schema.name} ({rows} rows), {len(schema.fields)} fields, tasks {' → '.join(schema.tasks)}.",
        f"Every model: {len(plan.protocol.search)} candidates tried with seed {plan.seeds[0]} on validation, the same "
        "order of rows for the same seed, the same number of epochs, the weights of its best validation AUC; the test "
        "split read once a run, after all choices.",
        f"Commit {', '.join(commits)}; {', '.join(f'{name} {number}' for name, number in versions.items())}; "
        f"{', '.join(devices)}.",
    ]
    missing = len(plan.final_runs()) - len(made)
    if missing:
        told.append(f"Not finished or failed: {missing} of {len(plan.final_runs())} final runs.")
    return [html.paragraph(sentence) for sentence in told]


def write_report(plan: Plan) -> None:
    """Writes what the finished runs tell; says so where there is none."""
    schema = Schema.load(plan.dataset)
    made = summary.finished(plan.final_runs())
    if not made:
        print(f"report: no final run is finished in {plan.directory}", flush=True)
        return
    collected = summary.scores(plan)
    rows = summary.comparison_rows(collected, schema.tasks)
    settings = {str(run): asdict(run.config) for run, _ in made if run.config.training.seed == plan.seeds[0]}
    text = json.dumps(settings, indent=1)
    parts = [
        *_protocol(plan, schema, made),
        html.heading("AUC"),
        html.picture(
            figures.auc_dots(collected, schema.tasks),
            "Each dot a seed, bars the means; red the papers' own models, grey their ablations; the dashed line is the "
            "best baseline's mean",
        ),
        *_auc_tables(rows, schema.tasks),
        _noise_table(collected, schema.tasks),
        *_published(plan, rows, schema.tasks),
        html.heading("Ablations"),
        *_ablation_tables(rows, schema.tasks),
        *_sweep(plan, schema.tasks),
        *_efficiency(plan),
        *_tafe_figures(plan),
        *_search(plan),
        html.heading("Settings"),
        html.preformatted(text, "every setting of the first seed's runs, to repeat them"),
    ]
    write_whole(plan.directory / "results.csv", _csv(summary.result_rows(plan, schema.name)))
    write_whole(plan.directory / "comparison.csv", _csv(rows))
    write_whole(plan.directory / "settings.json", text + "\n")
    write_whole(plan.directory / "report.html", html.page(f"{plan.protocol.title}: {schema.name}", parts))
    print(f"report: {plan.directory}: report.html, comparison.csv, results.csv, settings.json", flush=True)
