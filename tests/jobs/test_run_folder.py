"""The folder of a run: what makes a name usable, and what makes it another's."""

import pytest

from torchrec_mtl.errors import InputError
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
    with pytest.raises(InputError, match=r"was made with tafe.training.patience=3, now 2 is asked for"):
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
