"""Writes the results of a comparison: ``results.csv``, ``comparison.csv``, ``settings.json`` and ``report.html``."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from torchrec_mtl.data import Schema, load_schema
from torchrec_mtl.errors import InputError
from torchrec_mtl.files import read_json, to_json, write_whole
from torchrec_mtl.jobs import pictures, run_picture
from torchrec_mtl.jobs.compare import efficiency, figures, html, summary, tables
from torchrec_mtl.jobs.compare.plan import SWEPT, Plan
from torchrec_mtl.jobs.compare.runs import REPORT, Run
from torchrec_mtl.jobs.compare.selection import read_selection
from torchrec_mtl.jobs.results import ModelReport, read_report
from torchrec_mtl.jobs.run_config import RunConfig
from torchrec_mtl.systems import System
from torchrec_mtl.tasks import TaskForest

Row = dict[str, Any]


def _csv(rows: Sequence[Row]) -> str:
    stream = io.StringIO()
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _of_metric(plan: Plan, schema: Schema, name: str) -> tuple[list[Row], list[str]]:
    """The rows of one metric, and its part of the page."""
    metric, tasks = plan.known[name], schema.tasks
    collected = summary.scores(plan, summary.keys(tasks, name, metric))
    rows = summary.comparison_rows(collected, tasks, name, metric)
    description = (
        "Each dot a seed, bars the means; red the papers' own models, grey their ablations and other readings; "
        "the dashed line is the best baseline's mean"
    )
    parts = [
        html.heading(metric.title),
        html.picture(figures.dots(collected, metric), description),
        *tables.value_tables(rows, metric),
        tables.noise_table(collected),
    ]
    if metric.score == "ranking" and (later := summary.later(tasks.funnel)):
        parts.append(tables.share_table(summary.scores(plan, [(*each, "share_above_previous") for each in later])))
    if name == "auc" and plan.protocol.published:  # the papers report only AUCs
        parts += [html.heading("Beside the paper"), tables.published_table(plan.protocol.published, rows, schema)]
    if ablations := tables.ablation_tables(rows, metric):
        parts += [html.heading(f"Ablations and other readings: {metric.title}"), *ablations]
    return rows, parts


def _courses(plan: Plan, tasks: TaskForest) -> list[str]:
    """The picture of the papers' models, Shared-Bottom and the best other network, over all seeds."""
    name = next((name for name in plan.metrics if not plan.known[name].grouped), "auc")  # validation has no groups
    metric = plan.known[name]
    collected = summary.scores(plan, summary.keys(tasks, name, metric))
    networks = {name: own for name, own in collected.items() if isinstance(own.system, System)}
    if not networks:
        return []
    best = summary.best_baseline(networks, next(iter(next(iter(networks.values())).values)), metric)
    reports: dict[str, list[ModelReport]] = {}
    for run, _ in summary.finished(plan.final_runs()):
        if not isinstance(run.config, RunConfig):
            continue
        report = read_report(run.config, run.directory / REPORT)
        if report is not None and run.config.name in (*summary.PROPOSED, "shared_bottom", best):
            reports.setdefault(report.title, []).append(report)
    if not reports:
        return []
    description = (
        "The papers' own models, Shared-Bottom and the best other network: validation during training, the mean over "
        "seeds in a band from the lowest to the highest; calibration on the test split, a line a seed; and the funnel"
    )
    picture = pictures.png(run_picture.draw(reports, tasks, name, metric.title))
    return [html.heading("Training, calibration and the funnel"), html.picture(picture, description)]


def _by_task(result: Mapping[str, Any], tasks: TaskForest, name: str) -> dict[str, float]:
    """A metric on validation for each task, and its mean; NaN if it was not measured."""
    rows = {(r["task"], r["space"], r["metric"]): r["value"] for r in result["valid"]}
    shown = [task for task in tasks if (task, "impressions", name) in rows] or list(tasks)  # a value has other metrics
    values = {task: rows.get((task, "impressions", name), np.nan) for task in shown}
    return {**values, "mean": float(np.mean(list(values.values())))}


def _sweep(plan: Plan, tasks: TaskForest) -> list[str]:
    made = summary.finished(plan.sweep_runs())
    shown = [name for name in plan.metrics if not plan.known[name].grouped]  # validation has no groups
    if len(plan.protocol.sweep) != 2 or not made or not shown:
        return []
    first, second = plan.protocol.sweep
    parts = [html.heading("Sweep")]
    for name in shown:
        points = {}
        for run, result in made:
            values = dict(setting.split("=") for setting in run.variant.split(","))
            points[float(values[first]), float(values[second])] = _by_task(result, tasks, name)
        title = plan.known[name].title
        description = f"Validation {title} of {plan.by_name[SWEPT].title}, first seed, over {first} and {second}"
        parts.append(html.picture(figures.heat_maps(points, (first, second)), description))
    return parts


def _efficiency(plan: Plan) -> list[str]:
    file = plan.directory / efficiency.FILE
    if not file.is_file():
        return []
    measured = read_json(file)
    if (was := measured.get("data")) != plan.data:
        raise InputError(f"{file}: was measured on data={was!r}, now {plan.data!r} is asked for; remove it")
    cells = [
        [
            row["title"],
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
        if run.config.name == "tafe" and (run.directory / "checkpoints").is_dir()
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
    choices, scores = plan.choices(), plan.search_scores()
    if not scores:
        return []
    most = max(len(plan.protocol.candidates(system)) for system in plan.systems)
    cells = []
    for name in plan.searched:
        candidates, row = plan.protocol.candidates(plan.by_name[name]), [plan.by_name[name].title]
        for number in range(most):
            score = scores.get(name, {}).get(number)
            mark = " *" if choices.get(name) == number else ""
            row.append("-" if score is None else f"{score:.4f}{mark}")
        chosen = candidates[choices[name]] if name in choices else ()
        cells.append([*row, ", ".join(setting.removeprefix("training.") for setting in chosen)])
    header = ["", *(str(number + 1) for number in range(most)), "chosen"]
    caption = (
        f"Validation {plan.chosen_by.title} of every candidate, mean over tasks, first seed; "
        "* marks the choice for all seeds and ablations"
    )
    if plan.searched_in is not None:
        caption += f"; found on other data, {plan.searched_in.file.stem}"
    return [html.heading("What the search chose"), html.table(header, cells, caption), *_effects(plan, scores)]


def _effects(plan: Plan, scores: Mapping[str, Mapping[int, float]]) -> list[str]:
    """What a setting does that half of a model's candidates have, if all of them are finished."""
    effects: dict[str, dict[str, float]] = {}
    for name, of_model in scores.items():
        candidates = plan.protocol.candidates(plan.by_name[name])
        if len(of_model) < len(candidates):
            continue
        for setting in dict.fromkeys(setting for candidate in candidates for setting in candidate):
            has = [setting in candidate for candidate in candidates]
            if sum(has) * 2 == len(has) and not has[0]:  # the other half has another level, which is the first's
                means = [np.mean([of_model[i] for i, each in enumerate(has) if each == wanted]) for wanted in (0, 1)]
                effects.setdefault(setting, {})[name] = float(means[1] - means[0])
    if not effects:
        return []
    cells = [
        [plan.by_name[name].title, *(html.number(of_setting.get(name), "+.4f") for of_setting in effects.values())]
        for name in plan.searched
        if any(name in of_setting for of_setting in effects.values())
    ]
    header = ["", *(setting.removeprefix("training.") for setting in effects)]
    title = plan.chosen_by.title
    caption = f"Mean validation {title} of the candidates with a setting less that of those without, first seed"
    return [html.table(header, cells, caption)]


def _protocol(plan: Plan, schema: Schema, made: Sequence[tuple[Run, Mapping[str, Any]]]) -> list[str]:
    commits = sorted({result["commit"] for _, result in made})
    devices = sorted({result["device"] for _, result in made})
    versions = made[0][1]["versions"]
    rows = ", ".join(f"{split} {count:,}" for split, count in schema.num_rows.items())
    counts = sorted({len(plan.protocol.candidates(system)) for system in plan.systems})
    searched = "validation" if plan.searched_in is None else f"the validation split of {plan.searched_in.file.stem}"
    sentences = [
        f"Data: {schema.name} ({rows} rows), {len(schema.fields)} fields, tasks {schema.tasks}.",
        f"Every model: {' or '.join(map(str, counts))} candidates tried with seed {plan.seeds[0]} on {searched}, the "
        "same order of rows for the same seed, the same number of epochs, the weights of its best validation "
        f"{plan.chosen_by.title}; the test split read once a run, after all choices.",
        f"Commit {', '.join(commits)}; {', '.join(f'{name} {number}' for name, number in versions.items())}; "
        f"{', '.join(devices)}.",
    ]
    missing = len(plan.final_runs()) - len(made)
    if missing:
        sentences.append(f"Not finished or failed: {missing} of {len(plan.final_runs())} final runs.")
    return [html.paragraph(sentence) for sentence in sentences]


def write_report(plan: Plan) -> None:
    """Writes the results of the finished runs, or prints that there are none."""
    schema = load_schema(plan.dataset)
    made = summary.finished(plan.final_runs())
    if not made:
        print(f"report: no final run is finished in {plan.directory}", flush=True)
        return
    rows, of_metrics = [], []
    for name in plan.metrics:
        own_rows, own_parts = _of_metric(plan, schema, name)
        rows += own_rows
        of_metrics += own_parts
    settings = {str(run): run.config.as_dict() for run, _ in made if run.config.seed == plan.seeds[0]}
    text = to_json(settings, indent=1)
    parts = [
        *_protocol(plan, schema, made),
        *of_metrics,
        *_courses(plan, schema.tasks),
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
