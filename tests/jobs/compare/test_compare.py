"""Whole comparisons on a small funnel."""

import csv
import itertools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
import torch

from tests.foreign_metric import NAMED
from tests.jobs import funnel
from tests.jobs.test_folder_lock import hold
from torchrec_mtl.__main__ import main
from torchrec_mtl.jobs.compare import job, runs
from torchrec_mtl.jobs.compare.plan import Plan
from torchrec_mtl.jobs.compare.protocols import KNOWN, PROTOCOLS, Protocol, Published
from torchrec_mtl.jobs.compare.readings import READINGS
from torchrec_mtl.jobs.compare.table_models import TableModel
from torchrec_mtl.jobs.datasets import COMPLETE_JOURNEY, DATASETS
from torchrec_mtl.jobs.known_tasks import check_buildable
from torchrec_mtl.jobs.run_config import RunConfig
from torchrec_mtl.jobs.settings import PAPER, Settings, make_config
from torchrec_mtl.metrics import AUCS
from torchrec_mtl.systems import SYSTEMS as MODELS
from torchrec_mtl.systems import System
from torchrec_mtl.training.balancing import BALANCINGS, make_balancing

SYSTEMS = ("single_task", "shared_bottom", "bpcm", "tafe", "tafe_wo_tsa")
SMALL = ["training.batch_size=128", "tafe.model_args.num_layers=2", "tafe.model_args.num_inducing_points=4"]


PROTOCOL = Protocol(
    title="A small one",
    settings=Settings({**PAPER.common, "embedding_dim": 4, "training.evaluations_per_epoch": 1}),
    systems=SYSTEMS,
    search=(("training.optimizer.learning_rate=0.01",), ("training.optimizer.learning_rate=1e-05",)),
    sweep={"embedding_dim": (2, 4), "loss_args.alpha": (0.0, 0.6)},
    published=Published("A paper's table.", ("click", "purchase", "refund"), {"tafe": (0.6, 0.7, 0.8)}, 4.2),
)


@pytest.fixture(autouse=True)
def _protocol(monkeypatch):
    monkeypatch.setitem(job.PROTOCOLS, "small", PROTOCOL)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return funnel.prepare(tmp_path_factory.mktemp("data") / "tiny")


def compare(data, output, *arguments):
    options = ["--protocol", "small", "--datasets", str(data), "--seeds", "2", "--output", str(output)]
    return main(["compare", *options, *arguments, *SMALL])


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(job.PROTOCOLS, "small", PROTOCOL)
        assert compare(data, output) == 0
    return output / "tiny"


def result(folder, *names):
    return json.loads(folder.joinpath(*names, "result.json").read_text())


def test_all_runs_are_made_and_only_final_ones_read_the_test_split(finished):
    by_stage = {stage: list((finished / stage).rglob("result.json")) for stage in ("search", "final", "sweep")}
    assert {stage: len(files) for stage, files in by_stage.items()} == {"search": 8, "final": 10, "sweep": 4}
    for stage, files in by_stage.items():
        for file in files:
            assert bool(json.loads(file.read_text())["test"]) == (stage == "final"), file


def test_the_search_decides_by_validation_for_the_model_and_its_ablations(finished):
    for system in SYSTEMS:
        base = MODELS[system].base
        candidates = [result(finished, "search", base, f"candidate-{i}", "seed-0") for i in (0, 1)]
        best = max(candidates, key=lambda candidate: candidate["valid_score"])
        for seed in (0, 1):
            config = result(finished, "final", system, f"seed-{seed}")["config"]
            assert config["training"]["optimizer"] == best["config"]["training"]["optimizer"]
            assert config["training"]["table"] == best["config"]["training"]["table"]
            assert config["training"]["seed"] == seed


def test_only_the_first_seed_keeps_its_weights(finished):
    assert (finished / "final" / "tafe" / "seed-0" / "checkpoints").is_dir()
    assert not (finished / "final" / "tafe" / "seed-1" / "checkpoints").exists()
    assert not list((finished / "search").rglob("checkpoints"))


def test_the_tables_are_the_runs(finished):
    with (finished / "results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    aucs = {
        row["seed"]: float(row["value"])
        for row in rows
        if (row["stage"], row["model"], row["split"], row["metric"]) == ("final", "tafe", "test", "conditional_auc")
        and (row["task"], row["space"]) == ("purchase", "after cart")
    }
    assert set(aucs) == {"0", "1"}
    with (finished / "comparison.csv").open() as stream:
        compared = {(row["model"], row["task"], row["metric"]): row for row in csv.DictReader(stream)}
    assert {row["metric"] for row in compared.values()} == set(AUCS)
    assert len(compared) == len(SYSTEMS) * 7
    assert float(compared["tafe", "purchase", "conditional_auc"]["mean"]) == pytest.approx(sum(aucs.values()) / 2)
    measured = json.loads((finished / "efficiency.json").read_text())["rows"]
    assert [row["model"] for row in measured] == ["single_task", "shared_bottom", "bpcm", "tafe"]
    assert measured[1]["train_ratio"] == measured[1]["infer_ratio"] == 1


def test_the_report_is_one_whole_page(finished):
    text = (finished / "report.html").read_text()
    for system in SYSTEMS:
        assert MODELS[system].title in text
    for part in (
        "RelaImpr",
        "paired t-test",
        "purchase, after cart, conditional",
        "purchase, after cart, marginal",
        "Share of the rows with p_t &gt; p_t-1",
        "w/o TSA",
        "Sweep",
        "Training, calibration and the funnel",
        "Efficiency",
        "figure 5",
        "figures 7a and 7b",
        "figure 8",
    ):
        assert part in text
    published = text[text.index("Beside the paper") :]
    header = re.findall("<th>(.*?)</th>", published[: published.index("</table>")])
    assert [each.strip() for each in header if "here" not in each] == ["", "click, published", "purchase, published"]
    assert len(header) == 1 + 2 + 4  # purchase has three AUCs here
    assert "A paper&#x27;s table. Its test split has 4.2 M rows" in published.replace("'", "&#x27;")
    assert "Not a task of this data: refund." in published
    assert "0.7000" in published
    assert "0.8000" not in published
    assert text.count("data:image/png;base64,") == 6
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    assert '"num_inducing_points": 4' in text.replace("&quot;", '"')  # a setting


def test_the_report_shows_what_a_masked_selection_selects(data, tmp_path, monkeypatch):
    monkeypatch.setitem(job.PROTOCOLS, "small", replace(PROTOCOL, search=((),)))
    masked = ["--models", "tafe", "--stages", "final,report", "--seeds", "1", "tafe.model_args.selection=mask"]
    assert compare(data, tmp_path, *masked) == 0
    assert "figures 7a and 7b" in (tmp_path / "tiny" / "report.html").read_text()


def test_the_report_says_what_a_choice_does(finished):
    text = (finished / "report.html").read_text()
    table = text[text.index("less that of those without") :]
    table = table[: table.index("</table>")]
    assert re.findall("<th>(.*?)</th>", table) == ["", "optimizer.learning_rate=1e-05"]
    for system in ("single_task", "shared_bottom", "bpcm", "tafe"):
        first, second = (result(finished, "search", system, f"candidate-{i}", "seed-0")["valid_score"] for i in (0, 1))
        assert f"<td>{MODELS[system].title}</td><td>{second - first:+.4f}</td>" in table


@pytest.fixture(scope="module")
def by_log_loss(data, tmp_path_factory):
    """Chosen by log loss, and shown with a metric that the library does not have."""
    output = tmp_path_factory.mktemp("by_log_loss")
    candidates = tuple((f"training.optimizer.learning_rate={rate}",) for rate in (0.00001, 0.01))
    arguments = [
        "--metrics",
        f"log_loss,{NAMED},auc",
        "--models",
        "single_task,shared_bottom,tafe,tafe_wo_tsa",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(job.PROTOCOLS, "small", replace(PROTOCOL, search=candidates))
        stages = ["--stages", "search,final,report", "training.early_stopping_metric=log_loss"]
        assert compare(data, output, *arguments, *stages) == 0
    return output / "tiny"


def test_the_search_takes_the_least_where_lower_is_better(by_log_loss):
    for system in ("single_task", "shared_bottom", "tafe"):
        scores = {}
        for candidate in (0, 1):
            made = result(by_log_loss, "search", system, f"candidate-{candidate}", "seed-0")
            rate = made["config"]["training"]["optimizer"]["learning_rate"]
            scores[rate] = made["valid_score"]
            losses = [r["value"] for r in made["valid"] if (r["metric"], r["space"]) == ("log_loss", "impressions")]
            assert made["valid_score"] == pytest.approx(sum(losses) / 3)
        chosen = result(by_log_loss, "final", system, "seed-0")["config"]["training"]["optimizer"]["learning_rate"]
        assert scores[chosen] == min(scores.values()) < max(scores.values())


def test_the_report_shows_the_named_metrics(by_log_loss):
    text = (by_log_loss / "report.html").read_text()
    headings = re.findall("<h2>(.*?)</h2>", text)
    assert [heading for heading in headings if heading in ("log loss", "average precision", "AUC")] == [
        "log loss",
        "average precision",
        "AUC",
    ]
    assert headings.count("Beside the paper") == 1
    assert headings.index("Beside the paper") > headings.index("AUC")  # published figures are AUCs
    captions = re.findall("<figcaption>(.*?)</figcaption>", text)
    assert "Test log loss (lower is better), mean ± standard deviation over seeds" in captions
    assert "Test average precision (higher is better), mean ± standard deviation over seeds" in captions
    assert len([caption for caption in captions if "RelaImpr" in caption]) == 1
    assert any(caption.startswith("Validation log loss of every candidate") for caption in captions)
    assert "the weights of its best validation log loss" in text
    with (by_log_loss / "comparison.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert list(dict.fromkeys(row["metric"] for row in rows)) == [
        "log_loss",
        "average_precision",
        "conditional_average_precision",
        "marginal_average_precision",
        *AUCS,
    ]
    means = {(r["model"], r["metric"], r["task"], r["space"]): r for r in rows}
    tested = [
        next(
            row["value"]
            for row in result(by_log_loss, "final", "tafe", f"seed-{seed}")["test"]
            if (row["metric"], row["task"], row["space"]) == ("marginal_average_precision", "cart", "after click")
        )
        for seed in (0, 1)
    ]
    row = means["tafe", "marginal_average_precision", "cart", "after click"]
    assert float(row["mean"]) == pytest.approx(sum(tested) / 2)
    assert row["rela_impr"] == ""
    assert means["tafe", "conditional_auc", "cart", "after click"]["rela_impr"] != ""


def test_runs_that_were_made_without_a_metric_are_told(finished, data, capsys):
    arguments = ["--stages", "report", "--metrics", NAMED]
    assert compare(data, finished.parent, *arguments) == 2
    assert (
        "was made without `average_precision`; remove the folder, and its line of finished runs, to make it again"
        in capsys.readouterr().err
    )


def test_an_interrupted_comparison_goes_on(finished, data, tmp_path, capsys):
    folder = tmp_path / "copy" / "tiny"
    shutil.copytree(finished, folder)
    lost = folder / "final" / "shared_bottom" / "seed-1"
    before = json.loads((lost / "result.json").read_text())["test"]
    kept = {file: file.stat().st_mtime_ns for file in folder.rglob("result.json") if file.parent != lost}
    (lost / "result.json").unlink()  # as a kill leaves it
    (lost / "result.json.partial").write_text("{")
    assert compare(data, tmp_path / "copy", "--stages", "search,final,report") == 0
    assert "final: 10 runs, 9 are finished" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert json.loads((lost / "result.json").read_text())["test"] == before  # bit for bit


@pytest.mark.verify
def test_a_comparison_goes_on_elsewhere_from_the_file_of_finished_runs(finished, data, tmp_path, monkeypatch, capsys):
    """From the file alone, no run is made again, and results and tables are the same; a run is a line of it."""
    file = finished.parent / "tiny.csv"
    lines = pl.read_csv(file, infer_schema=False)
    here = {path.parent.relative_to(finished).as_posix() for path in finished.rglob("result.json")}
    assert sorted(lines["run"]) == sorted(here)
    kept = tmp_path / "kept"
    kept.mkdir()
    lines.filter(pl.col("run") != "final/shared_bottom/seed-1").write_csv(kept / "tiny.csv")
    made = []
    monkeypatch.setattr(
        job, "make_all", lambda runs, *_: iter(made.append(str(run)) or (run, "not here") for run in runs)
    )
    arguments = ["--finished", str(kept), "--stages", "search,final,sweep,report"]
    assert compare(data, tmp_path / "out", *arguments) == 1
    assert made == ["final shared_bottom seed 1"]
    assert "final: 9 finished runs are from" in capsys.readouterr().out
    elsewhere = tmp_path / "out" / "tiny"
    for name in here - {"final/shared_bottom/seed-1"}:
        assert result(elsewhere, name) == result(finished, name)
    monkeypatch.undo()
    monkeypatch.setitem(job.PROTOCOLS, "small", PROTOCOL)
    assert compare(data, tmp_path / "out", *arguments) == 0  # makes the last
    assert sorted(pl.read_csv(kept / "tiny.csv", infer_schema=False)["run"]) == sorted(here)
    assert (elsewhere / "comparison.csv").read_text() == (finished / "comparison.csv").read_text()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda rows: rows.with_columns(result=pl.lit("{")),
            r"tiny.csv: run search/single_task.*: cannot be read as JSON",
        ),
        (lambda rows: rows.with_columns(result=pl.lit("{}")), r"tiny.csv: run search/single_task.* has no `config`"),
        (lambda rows: rows.drop("date"), r"tiny.csv: its columns \(=.*\) must be"),
    ],
)
def test_a_damaged_file_of_finished_runs_is_refused(finished, data, tmp_path, capsys, change, sentence):
    change(pl.read_csv(finished.parent / "tiny.csv", infer_schema=False)).write_csv(tmp_path / "tiny.csv")
    assert compare(data, tmp_path, "--stages", "report") == 2
    assert re.search(sentence, capsys.readouterr().err)
    assert not list(tmp_path.rglob("result.json"))


def test_a_result_tells_where_it_was_made(finished):
    made = result(finished, "final", "shared_bottom", "seed-0")
    assert made["device"].count("core") == 1 or torch.cuda.is_available()
    assert made["versions"]["torch"] == torch.__version__


def test_two_results_of_a_run_do_not_mix(finished, data, tmp_path, capsys):
    shutil.copy(finished.parent / "tiny.csv", tmp_path)
    assert compare(data, tmp_path, "--stages", "report") == 0
    (result_file, *_) = sorted(tmp_path.rglob("final/*/seed-0/result.json"))
    here = json.loads(result_file.read_text())
    result_file.write_text(json.dumps({**here, "date": "2000-01-01"}))
    assert compare(data, tmp_path, "--stages", "report") == 2
    sentence = rf"tiny.csv: run final/.*/seed-0 has the result of {re.escape(here['date'])}, not that of 2000-01-01 in "
    assert re.search(sentence + re.escape(f"{result_file}: remove one of them"), capsys.readouterr().err)


def test_finished_runs_of_other_settings_do_not_mix(finished, data, tmp_path, capsys):
    shutil.copy(finished.parent / "tiny.csv", tmp_path)
    assert compare(data, tmp_path, "embedding_dim=8") == 2
    assert re.search(r"tiny.csv: run .* was made with embedding_dim=4, now 8 is asked for", capsys.readouterr().err)


def test_the_search_of_another_comparison_decides(finished, data, tmp_path, capsys):
    """On other data, without a search; the first candidate that is best there is taken here."""
    other = funnel.prepare(tmp_path / "data" / "tiny", train=600)
    choices = ["--choices", str(finished.parent / "tiny.csv")]
    arguments = ["--models", "shared_bottom,tafe_wo_tsa", "--stages", "search,final,report", "--seeds", "1", *choices]
    assert compare(other, tmp_path / "out", *arguments) == 0
    assert "search: 0 runs" in capsys.readouterr().out
    for system in ("shared_bottom", "tafe_wo_tsa"):
        made, there = (result(folder, "final", system, "seed-0") for folder in (tmp_path / "out" / "tiny", finished))
        assert made["config"] == there["config"]
        assert made["data"] != there["data"]
    page = (tmp_path / "out" / "tiny" / "report.html").read_text()
    assert "found on other data, tiny" in page
    assert "candidates tried with seed 0 on the validation split of tiny, the same order" in page
    assert compare(other, tmp_path / "other", *arguments, "embedding_dim=8") == 2
    assert "was made with embedding_dim=4, now 8 is asked for; name another `choices`" in capsys.readouterr().err
    assert compare(other, tmp_path / "other", "--choices", "nowhere.csv") == 2
    assert "`choices` (='nowhere.csv') must be a CSV file of finished runs" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["--seeds", "1"]])
def test_a_second_comparison_in_the_folder_is_refused_while_the_first_runs(data, tmp_path, capsys, arguments):
    first = hold(tmp_path, ("output", "comparison"))
    assert compare(data, tmp_path, *arguments) == 2
    sentence = f"must not be that of a comparison in progress, but process {first.pid} on "
    assert f"error: `output` (='{tmp_path.name}') {sentence}" in capsys.readouterr().err
    first.kill()
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "said"}


def test_results_of_other_settings_do_not_mix(finished, data, capsys):
    assert compare(data, finished.parent, "embedding_dim=8") == 2
    assert re.search(r"result.json: was made with embedding_dim=4, now 8 is asked for", capsys.readouterr().err)


def test_results_of_older_code_are_those_of_the_defaults_of_newer_settings(finished, data, tmp_path, capsys):
    output = tmp_path / "copy"
    shutil.copytree(finished, output / "tiny")
    for file in (output / "tiny").rglob("result.json"):
        result = json.loads(file.read_text())
        for settings in (result["config"]["training"], result["config"]["training"]["table"]):
            settings.pop("exchange_precision", None)
            settings.pop("sharding", None)
        file.write_text(json.dumps(result))
    assert compare(data, output, "--stages", "report") == 0
    assert compare(data, output, "--stages", "report", "training.exchange_precision=fp16") == 2
    sentence = r"result.json: was made with training.exchange_precision='fp32', now 'fp16' is asked for"
    assert re.search(sentence, capsys.readouterr().err)


def test_results_of_other_data_do_not_mix(finished, tmp_path, capsys):
    """The same name, settings and numbers of rows; only some values differ."""
    other = funnel.prepare(tmp_path / "tiny")
    rows = pl.read_parquet(other / "test.parquet")
    rows.with_columns(pl.col("user").reverse()).write_parquet(other / "test.parquet")
    for stages in ("search", "final", "efficiency,report", "report"):
        assert compare(other, finished.parent, "--stages", stages) == 2
        said = capsys.readouterr()
        assert re.search(r"result\.json: was made with data='tiny, .*', now 'tiny, .*' is asked for", said.err)
        assert "are finished" not in said.out


def test_efficiency_of_other_data_is_not_shown(finished, data, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "copy" / "tiny")
    file = tmp_path / "copy" / "tiny" / "efficiency.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "data": "other"}))
    assert compare(data, tmp_path / "copy", "--stages", "report") == 2
    assert "efficiency.json: was measured on data='other', now 'tiny" in capsys.readouterr().err


def test_a_failed_run_does_not_lose_the_others(data, tmp_path, monkeypatch, capsys):
    """The widest of the runs cannot be made: its tables are larger than any memory."""
    candidates = (("embedding_dim=4",), ("shared_bottom.embedding_dim=500000000",))
    monkeypatch.setitem(job.PROTOCOLS, "small", replace(PROTOCOL, search=candidates))
    options = ["--models", "single_task,shared_bottom", "--stages", "search,final,report", "--seeds", "1"]
    assert compare(data, tmp_path, *options) == 1
    said = capsys.readouterr()
    assert "search shared_bottom candidate-1 seed 0 failed" in said.err
    assert len(list((tmp_path / "tiny" / "final").rglob("result.json"))) == 2
    assert "Shared-Bottom" in (tmp_path / "tiny" / "report.html").read_text()


WRONG = [
    (["--protocol", "mine"], "protocol 'mine' must be one of"),
    (["--models", "tafe,esmm"], "model of protocol small: 'esmm' must be one of"),
    (["--seeds", "0"], "`seeds` (=0) must be at least 1"),
    (["--workers", "0"], "`workers` (=0) must be at least 1"),
    (["--stages", "train"], "stage 'train' must be one of"),
    (["--metrics", "auc,logloss"], "metric 'logloss' must be one of"),
    (["training.early_stopping_metric=acu"], "; the nearest is 'auc'"),
    (["training.early_stopping_metric=gauc"], "`early_stopping_metric` (='gauc') must be a metric without groups"),
    (["tafe.training.early_stopping_metric=log_loss"], "(=['auc', 'log_loss']) must be the same in all runs"),
    (["--datasets", "/nowhere"], "/nowhere/schema.json: no such file"),
    (["tafe.model_args.num_heads=3"], "`num_heads` (=3) must divide `embedding_dim` (=4)"),
]


@pytest.mark.parametrize(("arguments", "sentence"), WRONG)
def test_a_wrong_argument_is_one_sentence_and_status_2(data, tmp_path, capsys, arguments, sentence):
    assert compare(data, tmp_path / "out", *arguments) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocols_hold_together(name):
    protocol = PROTOCOLS[name]
    networks = [system for name in protocol.systems if isinstance(system := KNOWN[name], System)]
    if protocol.published is not None:
        assert set(protocol.published.aucs) <= set(protocol.systems)
        assert {len(aucs) for aucs in protocol.published.aucs.values()} == {len(protocol.published.tasks)}
    if (
        protocol.settings.systems != COMPLETE_JOURNEY.systems
    ):  # whose sizes were found by its validation split, a system at a time
        assert len({make_config(system, protocol.settings).embedding_dim for system in networks}) == 1
    assert len({len(protocol.candidates(system)) for system in networks}) == 1
    for system in networks:
        assert system.base in protocol.systems
        for candidate in protocol.candidates(system):
            assert isinstance(make_config(system, protocol.settings, candidate), RunConfig)


def test_in_the_complete_journeys_candidates_every_choice_meets_every_other_equally_often():
    """Choices are of two or three levels, and all models have as many candidates, table models too."""
    protocol = PROTOCOLS["complete_journey"]
    for system in KNOWN.values():
        candidates = protocol.candidates(system)
        assert len(candidates) == len(set(candidates)) == 12
        if not isinstance(system, TableModel):
            levels = {setting for candidate in candidates for setting in candidate}
            half = [level for level in levels if sum(level in candidate for candidate in candidates) == 6]
            for one, other in itertools.combinations(half, 2):
                both = sum(one in candidate and other in candidate for candidate in candidates)
                of_one_choice = all((one in candidate) != (other in candidate) for candidate in candidates)
                assert both == (0 if of_one_choice else 3), (system.name, one, other)


def test_the_candidates_of_the_complete_journey_can_be_built():
    """On its schema, on `meta`, ablations with the candidates of their model too."""
    dataset, protocol = DATASETS["complete_journey"], PROTOCOLS["complete_journey"]
    for system in (each for each in KNOWN.values() if isinstance(each, System)):
        for candidate in protocol.candidates(system)[::3]:  # each level of every choice is among them
            check_buildable(make_config(system, protocol.settings, candidate), "complete_journey", dataset)


def test_balancing_is_searched_on_validation_with_static_weights_too():
    """Each candidate is another run, with a weight for each of the data set's tasks."""
    protocol, tasks = PROTOCOLS["balancing"], DATASETS["complete_journey"].tasks
    plan = Plan(protocol, Path(), Path(), [0], [MODELS["mmoe"]])
    found = [run.config.training for run in plan.search_runs()]
    assert {training.balancing for training in found} == {"sum", *BALANCINGS}
    assert len({str(training.balancing_args) + training.balancing for training in found}) == len(protocol.search)
    for training in found:
        make_balancing(training.balancing, tasks, training.balancing_args)


@pytest.mark.parametrize("system", MODELS)
def test_every_system_trains(data, tmp_path, system):
    config = make_config(MODELS[system], Settings({"embedding_dim": 4, "training.batch_size": 256}))
    runs.make(runs.Run("search", "", data, config, tmp_path / "run"))
    made = result(tmp_path, "run")
    assert made["test"] == []
    assert made["best_step"] == -(-funnel.ROWS["train"] // 256)
    assert 0 < made["valid_score"] < 1


@pytest.mark.parametrize("system", READINGS)
def test_every_reading_changes_one_thing_of_its_model_and_trains(data, tmp_path, system):
    reading = READINGS[system]
    changed = set(reading.model_args) - set(MODELS[reading.base].model_args)
    assert (reading.model, len(changed)) == (MODELS[reading.base].model, 1)
    config = make_config(reading, PAPER, ["training.batch_size=256", "embedding_dim=4"], list(READINGS))
    runs.make(runs.Run("search", "", data, config, tmp_path / "run"))
    assert 0 < result(tmp_path, "run")["valid_score"] < 1
