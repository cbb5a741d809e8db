"""Settings: what a wrong command line is told, and what cannot be set."""

import json
import os
import re
from contextlib import suppress

import pytest
import torch
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.jobs import funnel
from torchrec_mtl import losses, models
from torchrec_mtl.__main__ import JOBS, main
from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs.build import build_model
from torchrec_mtl.jobs.datasets import COMPLETE_JOURNEY, SETTINGS
from torchrec_mtl.jobs.run_config import first_difference
from torchrec_mtl.jobs.settings import PAPER, Settings, make_config, run_parameters
from torchrec_mtl.systems import LOSSES, SYSTEMS, System
from torchrec_mtl.training.config import TrainingConfig

META = torch.device("meta")
TEXTS = ["", "x", "-1", "0", "1.5", "1e9", "nan", "inf", "-inf", "None", "null", "true", "[]", "[0]", "[-1, 2]", "{}"]
TEXTS += ["[1.0, 2.0, 3.0]", "'a'", "(1, 2)", "{'a': 1}", "{'a': {'sharding': 1}}", "[[]]", "1_000", "0x10", "{", "a=b"]
TEXTS += ["torch.nn:Linear", "{class_path: os.system}", "/etc/passwd", "run", "é", "[1, 'x', null]", "9" * 400]


def every_setting():
    return [(name, path) for name, system in SYSTEMS.items() for path in run_parameters(system, system.loss)]


@given(st.sampled_from(every_setting()), st.sampled_from(TEXTS) | st.text(max_size=8))
@example(("tafe", "training.tables"), "{'a': {'sharding': 1}}")
@hypothesis_settings(max_examples=400, deadline=None)
def test_any_value_of_any_setting_makes_a_run_or_one_sentence(setting, text):
    """Never another exception, and never a value of another type; the sentence names the setting."""
    system, path = setting
    try:
        config = make_config(SYSTEMS[system], PAPER, [f"{path}={text}"])
        if config.embedding_dim < 10**6:  # a table of more is described, but no layer over it can be
            build_model(config, funnel.SCHEMA, META)
    except InputError as error:
        (sentence,) = [str(error)]
        assert path.split(".")[-1] in sentence or path in sentence, sentence


def test_values_are_what_python_json_and_yaml_write():
    for text in ("(32, 16)", "[32, 16]", "[32,16]"):
        config = make_config(SYSTEMS["tafe"], PAPER, [f"model_args.tower_layer_sizes={text}"])
        assert list(config.model_args["tower_layer_sizes"]) == [32, 16]
    for text in ("None", "null"):
        config = make_config(SYSTEMS["tafe"], COMPLETE_JOURNEY, [f"loss_args.task_weights={text}"])
        assert config.loss_args["task_weights"] is None
    assert make_config(SYSTEMS["bpcm"], PAPER, ["model_args.layer_norm=True"]).model_args["layer_norm"] is True


class Scaled(torch.nn.Module):
    """A loss that cannot be built without being told more than the tasks."""

    def __init__(self, tasks, *, scale: float):
        super().__init__()
        self.scale = scale


def test_an_argument_without_a_default_is_given():
    config = make_config(SYSTEMS["tafe"], PAPER, ["loss=tests.jobs.test_settings:Scaled", "loss_args.scale=2"])
    assert config.loss(funnel.SCHEMA.tasks, **config.loss_args).scale == 2.0


WRONG = [
    ("tafe", "model_args.nun_layers=3", "tafe has no setting 'model_args.nun_layers'; the nearest is 'model_args.num_"),
    ("tafe", "model_args.num_layers=three", "`model_args.num_layers` (='three') must be of type int"),
    ("tafe", "model_args.num_layers=2.0", "`model_args.num_layers` (='2.0') must be of type int"),
    ("tafe", "model_args.residual=both", "`model_args.residual` (='both') must be one of 'input', 'query', 'none'"),
    ("tafe", "trainin.max_epochs=3", "the first part of a setting, 'trainin' must be one of ['model_args', "),
    ("tafe", "tfae.model_args.num_layers=3", "'tfae' must be one of"),
    ("tafe", "training.optimiser.learning_rate=1", "the nearest is 'training.optimizer.learning_rate'"),
    ("tafe", "training.table.learning_rate=-1", "`learning_rate` (=-1.0) must be at least 0"),
    ("tafe", "training.tables.t_user.shading=row_wise", "tafe has no setting 'training.tables.t_user.shading'"),
    (
        "tafe",
        "training.tables.t_user.learning_rate=fast",
        "`training.tables.t_user.learning_rate` (='fast') must be",
    ),
    ("tafe", "training.tables={'t_user': {'learning_rate': 'fast'}}", "`training.tables.t_user.learning_rate` (='fas"),
    ("tafe", "training.tables={'t_user': {'sharding': 1}}", "`tables` of t_user: `sharding` (='1') must be one of"),
    ("tafe", "loss=dependance", "loss 'dependance' must be one of ['cross_entropy', "),
    ("tafe", "loss=os:path", "loss 'os:path' must be a type, not a module"),
    ("tafe", "loss=torch.nn:Linear", "loss 'torch.nn:Linear' must be a torch.nn.Module whose first argument is `tas"),
    ("tafe", "loss=builtins:dict", "loss 'builtins:dict' must be a torch.nn.Module"),
    ("tafe", "loss=tests.jobs.test_settings:Scaled", "`loss_args.scale` of tafe must be given: it has no default"),
    ("tafe", "loss=nowhere.at_all:Loss", "loss 'nowhere.at_all:Loss': nowhere.at_all cannot be imported"),
    ("tafe", "loss=torchrec_mtl.losses:Los", "torchrec_mtl.losses has no 'Los'"),
    ("mmoe", "model_args.gate=softmax", "mmoe has no setting 'model_args.gate'"),
    (
        "escm2_dr",
        "model_args.estimator=ips",
        "`model_args.estimator` is what makes escm2_dr this system",
    ),
    ("tafe_wo_tsa", "model_args.task_indicators=True", "is what makes tafe_wo_tsa this system, and cannot be set"),
    ("tafe_wo_dependence", "loss_args.dependence_weight=2.0", "is what makes tafe_wo_dependence this system"),
    ("tafe_wo_dependence", "loss=cross_entropy", "`loss` of tafe_wo_dependence must stay"),
]


@pytest.mark.parametrize(("system", "override", "sentence"), WRONG)
def test_a_wrong_setting_is_told(system, override, sentence):
    with pytest.raises(InputError, match=re.escape(sentence)):
        make_config(SYSTEMS[system], PAPER, [override])


@pytest.mark.parametrize("system", [system for system in SYSTEMS.values() if system.fixed], ids=lambda s: s.name)
def test_what_makes_a_system_this_system_is_fixed(system):
    """Also where the setting is given for the system that an ablation is of."""
    for name in system.fixed:
        kind = "model_args" if name in system.model_args else "loss_args"
        value = {**system.model_args, **system.loss_args}[name]
        for prefix in ("", f"{system.base}.", f"{system.name}."):
            with pytest.raises(InputError, match="cannot be set"):
                make_config(system, PAPER, [f"{prefix}{kind}.{name}={value}"])


def test_a_gates_own_settings_are_settings():
    config = make_config(SYSTEMS["mmoe_dselect_k"], PAPER, ["model_args.gate.num_selected=3"])
    assert config.model_args["gate"].num_selected == 3
    assert config.as_dict()["model_args"]["gate"] == {"num_selected": 3, "per_example": True, "gamma": 1.0}


def test_another_loss_takes_over_what_it_takes_too():
    config = make_config(SYSTEMS["bpcm"], COMPLETE_JOURNEY, ["loss=cross_entropy"])
    assert (config.loss, config.loss_args) == (LOSSES["cross_entropy"], {"task_weights": [1.0, 2.0, 4.0, 8.0]})
    config = make_config(SYSTEMS["bpcm"], COMPLETE_JOURNEY, ["loss=local_space", "loss_args.min_propensity=0.1"])
    assert config.loss_args == {"min_propensity": 0.1}
    assert config.as_dict()["loss"] == "local_space"
    with pytest.raises(InputError, match=re.escape("bpcm has no setting 'loss_args.alpha'")):
        make_config(SYSTEMS["bpcm"], PAPER, ["loss=cross_entropy", "loss_args.alpha=0.5"])


def test_a_system_of_ones_own_needs_no_sizes_on_the_default_data_set():
    """Nor a loss that takes what ours take there."""
    own = System("own", "Own", models.SharedBottom, losses.LocalSpaceLoss)
    config = make_config(own, COMPLETE_JOURNEY, ["own.model_args.dropout=0.1"], ["own"])
    assert (config.model_args, config.loss_args) == ({"dropout": 0.1}, {})
    with pytest.raises(InputError, match=re.escape("own has no setting 'loss_args.task_weights'")):
        make_config(own, COMPLETE_JOURNEY, ["loss_args.task_weights=[1.0]"])


def test_a_system_without_sizes_of_a_data_set_runs_with_its_defaults():
    settings = Settings({"embedding_dim": 8}, {"tafe": {"model_args.num_layers": 2}})
    assert make_config(SYSTEMS["aitm"], settings).model_args == {}
    assert make_config(SYSTEMS["tafe_wo_tsa"], settings).model_args == {"num_layers": 2, "task_indicators": False}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("system", SYSTEMS.values(), ids=lambda system: system.name)
def test_the_settings_of_every_data_set_make_runs(name, system):
    config = make_config(system, SETTINGS[name])
    assert set(SETTINGS[name].systems) <= set(SYSTEMS)
    assert set(SETTINGS[name].systems.get(system.base, {})) <= set(run_parameters(system, system.loss))
    assert isinstance(config.training, TrainingConfig)
    assert first_difference(json.loads(json.dumps(config.as_dict())), config.as_dict()) is None


def test_help_lists_every_setting_with_type_default_and_a_sentence(capsys):
    assert main(["train", "--models", "tafe,mmoe_dselect_k", "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    for name in ("tafe", "mmoe_dselect_k"):
        for path, parameter in run_parameters(SYSTEMS[name], SYSTEMS[name].loss).items():
            assert f"{path}=" in told
            assert parameter.description, path
            assert f"({parameter.kind}): {parameter.description}" in told
    for option in ("--models", "--dataset", "--metrics", "--show-config", "--seed", "--name"):
        assert option in told


def test_show_config_prints_the_run_and_stops(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["--models", "tafe", "--seed", "7", "model_args.num_layers=3"]
    assert main(["train", *arguments, "--show-config"]) == 0
    shown = json.loads(capsys.readouterr().out)["tafe"]
    assert shown["model_args"]["num_layers"] == 3
    assert shown["model_args"]["num_inducing_points"] == 8  # of the data set that is the default
    assert shown["training"]["seed"] == 7
    assert os.listdir(tmp_path) == []


def test_show_config_prints_the_bytes_of_each_table_with_optimizer_state_and_of_each_rank(tmp_path, capsys):
    data = funnel.prepare(tmp_path / "data")
    options = ["--dataset", str(data), "--models", "tafe", "embedding_dim=1000", "training.table.optimizer=adagrad"]
    assert main(["train", *options, "--show-config"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["tafe"]["embedding_dim"] == 1000
    lines = [line.split() for line in said.err.splitlines()]
    megabytes = {line[0]: line[line.index("MB") - 1] for line in lines if line and line[0].startswith("t_")}
    assert megabytes == {"t_user": "0.2", "t_item": "0.1", "t_tags": "0.0"}  # 8000 bytes a row
    assert "tables with optimizer states, MB a rank: 0.3" in said.err


@pytest.mark.parametrize("dataset", ["complete_journey", "synthetic", "ali_ccp", "taobao", "/not/here"])
def test_show_config_says_where_the_bytes_of_tables_are_not_known(capsys, dataset):
    assert main(["train", "--models", "shared_bottom", "--dataset", dataset, "--show-config"]) == 0
    said = capsys.readouterr()
    assert "shared_bottom" in json.loads(said.out)
    assert said.err == f"{dataset}: not a prepared folder here, so the bytes of tables are not known yet\n"


LINES = [
    ([], 0, "usage: torchrec-mtl JOB"),
    (["--help"], 0, "usage: torchrec-mtl JOB"),
    (["trian"], 2, "error: job 'trian' must be one of ['train', 'compare', 'prepare']; the nearest is 'train'"),
    (["train", "--modles", "tafe"], 2, "error: there is no option --modles; the nearest is --models"),
    (["train", "--seed", "x"], 2, "error: argument --seed: invalid int value: 'x'"),
    (["train", "--sample"], 2, "error: argument --sample: expected one argument"),
    (["train", "--models", "tafe,tafe"], 2, "error: `models` (='tafe,tafe') must not name 'tafe' twice"),
    (["train", "--models", "os:path"], 2, "error: model 'os:path' must be a System, not a module"),
    (["train", "--models", "no.such:THING"], 2, "error: model 'no.such:THING': no.such cannot be imported"),
    (["train", "--models", ""], 2, "error: model '' must be one of"),
    (["train", "--metrics", "acu"], 2, "error: metric 'acu' must be one of"),
    (["train", "--metrics", "acu", "--show-config"], 2, "error: metric 'acu' must be one of"),
    (["train", "training.early_stopping_metric=acu", "--show-config"], 2, "error: `early_stopping_metric` (='acu')"),
    (["train", "--dataset", "no.such:DATA"], 2, "error: data set 'no.such:DATA': no.such cannot be imported"),
    (["train", "--settings", "papers"], 2, "error: `settings` (='papers') must be one of"),
    (["train", "max_epochs"], 2, "error: setting 'max_epochs' must have the form path=value"),
    (["train", "=3"], 2, "error: setting '=3' must have the form path=value"),
    (["compare", "--protocols", "paper"], 2, "error: there is no option --protocols; the nearest is --protocol"),
    (["prepare"], 2, "error: the following arguments are required"),
    (["prepare", "ali_cpc", "--raw", "a", "--output", "b"], 2, "error: argument DATASET: invalid choice: 'ali_cpc'"),
    (["prepare", "ali_ccp", "--raw", "a", "--out", "b"], 2, "error: "),
]


@pytest.mark.parametrize(("line", "status", "told"), LINES)
def test_a_wrong_command_line_is_one_sentence_and_status_2(line, status, told, capsys):
    assert main(line) == status
    said = capsys.readouterr()
    text = said.err if status else said.out
    assert text.startswith(told)
    assert not status or text.count("\n") == 1


@pytest.mark.parametrize("job", JOBS)
def test_every_job_has_a_help(job, capsys):
    with suppress(SystemExit):  # argparse's own
        assert main([job, "--help"]) == 0
    assert "torchrec-mtl" in capsys.readouterr().out


@pytest.mark.parametrize("job", ["train", "compare"])
def test_an_output_that_cannot_be_made_is_told(job, tmp_path, capsys):
    data = funnel.prepare(tmp_path / "data")
    (tmp_path / "file").write_text("")
    where = ["--datasets", str(data), "--protocol", "paper"] if job == "compare" else ["--dataset", str(data)]
    assert main([job, *where, "--models", "tafe", "--output", str(tmp_path / "file" / "runs")]) == 2
    told = r"error: `output` \(='.*file/runs.*'\) must be a folder that can be made: Not a directory\n"
    assert re.fullmatch(told, capsys.readouterr().err)
