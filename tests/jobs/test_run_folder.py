"""The folder of a run: what makes a name usable, and what makes it another's."""

import json
import re
from dataclasses import MISSING, fields, is_dataclass

import pytest

from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs.run_config import RunConfig
from torchrec_mtl.jobs.run_folder import is_finished, open_run
from torchrec_mtl.jobs.train_arguments import check_arguments


def settings(*arguments):
    return {config.name: config.as_dict() for config in check_arguments(["--models", "tafe", *arguments])}


SETTINGS, OTHERS = settings(), settings("training.patience=2")


@pytest.mark.parametrize("left", [[], [".lock"], [".lock", "config.json.partial"]])
def test_a_job_killed_before_it_wrote_its_settings_leaves_a_usable_name(tmp_path, left):
    for name in left:
        (tmp_path / name).write_text("{")
    open_run(tmp_path, SETTINGS)
    open_run(tmp_path, SETTINGS)
    with pytest.raises(InputError, match=r"was made with tafe.training.patience=\d+, now 2 is asked for"):
        open_run(tmp_path, OTHERS)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match=r"must be a new run's, but .* is no run: it holds 'thesis.tex'"):
        open_run(tmp_path, SETTINGS)


@pytest.mark.parametrize("contents", ["", "{", "[]", "null", "\xff"])
@pytest.mark.parametrize("look", [open_run, is_finished])
def test_damaged_settings_are_named(tmp_path, contents, look):
    (tmp_path / "config.json").write_text(contents, encoding="latin-1")
    (tmp_path / "results.json").touch()
    with pytest.raises(InputError, match=rf"^{tmp_path}/config.json: (cannot be read as JSON|must hold a JSON object)"):
        look(tmp_path, SETTINGS)


def paths(kind, prefix=()):
    """The default of each setting of a dataclass, with the keys that lead to it."""
    for each in fields(kind):
        if is_dataclass(each.default_factory):
            yield from paths(each.default_factory, (*prefix, each.name))
        elif each.default not in (MISSING, None):
            yield (*prefix, each.name), each.default


NEWER = dict(paths(RunConfig))


def changed(keys, value=MISSING):
    """The settings of a run, with another value at ``keys``; as before the setting was there, without a value."""
    config = json.loads(json.dumps(SETTINGS["tafe"]))
    *folders, leaf = keys
    at = config
    for folder in folders:
        at = at[folder]
    if value is MISSING:
        del at[leaf]
    else:
        at[leaf] = value
    return config


def write(folder, config):
    folder.joinpath("config.json").write_text(json.dumps({"tafe": config}))


@pytest.mark.parametrize("keys", NEWER, ids=".".join)
def test_a_setting_that_is_newer_than_a_run_is_no_difference_at_its_default(tmp_path, keys):
    write(tmp_path, changed(keys))
    open_run(tmp_path, {"tafe": changed(keys, NEWER[keys])})
    with pytest.raises(InputError, match=rf"tafe\.{re.escape('.'.join(keys))}=.*, now 'another' is asked for"):
        open_run(tmp_path, {"tafe": changed(keys, "another")})


def test_newer_settings_are_those_of_every_dataclass_of_a_run():
    first = {keys[:-1] for keys in NEWER}
    assert first == {(), ("zch",), ("histories",), ("training",)} | {
        ("training", name) for name in ("optimizer", "table", "checkpoint")
    }


@pytest.mark.parametrize(
    ("of_one", "of_all", "difference"),
    [
        ("auto", "auto", None),
        ("row_wise", "auto", "training.tables.a.b.sharding='auto', now 'row_wise'"),
        ("auto", "row_wise", "training.table.sharding='auto', now 'row_wise'"),
    ],
)
def test_a_newer_setting_of_a_single_table_has_the_default_of_all_tables(tmp_path, of_one, of_all, difference):
    write(tmp_path, changed(("training", "table", "sharding")))
    wanted = settings(f"training.tables.a.b.sharding={of_one}", f"training.table.sharding={of_all}")
    if difference is None:
        open_run(tmp_path, wanted)
    else:
        with pytest.raises(InputError, match=re.escape(difference)):
            open_run(tmp_path, wanted)


def test_a_single_table_at_the_default_is_a_difference_where_all_tables_had_another_value(tmp_path):
    write(tmp_path, changed(("training", "table", "sharding"), "row_wise"))
    wanted = settings("training.table.sharding=row_wise", "training.tables.user.sharding=auto")
    with pytest.raises(InputError, match=r"training\.tables\.user\.sharding=None, now 'auto' is asked for"):
        open_run(tmp_path, wanted)


@pytest.mark.parametrize("kind", ["model_args", "loss_args"])
def test_an_argument_of_a_model_or_a_loss_is_no_setting_that_has_a_default(tmp_path, kind):
    name = next(iter(SETTINGS["tafe"][kind]))
    write(tmp_path, changed((kind, name)))
    with pytest.raises(InputError, match=rf"tafe\.{kind}\.{name}[.\w]*=None, now"):
        open_run(tmp_path, SETTINGS)


def test_settings_that_a_run_has_and_the_library_no_longer_are_a_difference(tmp_path):
    write(tmp_path, SETTINGS["tafe"] | {"gone": 1})
    with pytest.raises(InputError, match=r"tafe\.gone=1, now None is asked for"):
        open_run(tmp_path, SETTINGS)


@pytest.mark.parametrize("of_model", [3, [], "x", None, {}])
def test_what_is_no_run_has_no_defaults(tmp_path, of_model):
    write(tmp_path, of_model)
    with pytest.raises(InputError, match=r"the unfinished run was made with tafe\."):
        open_run(tmp_path, SETTINGS)
