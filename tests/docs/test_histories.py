"""docs/histories.md: its commands and its program are accepted, and what it refuses is refused."""

import re
import shlex
from pathlib import Path

import pytest
from torchrec import EmbeddingCollection

from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs.settings import Settings, make_config
from torchrec_mtl.modules import HistoryConfig
from torchrec_mtl.systems import SYSTEMS
from torchrec_mtl.training.config import SHARDINGS, TrainingConfig
from torchrec_mtl.training.table_constraints import check_rows

PAGE = (Path(__file__).parents[2] / "docs" / "histories.md").read_text(encoding="utf-8")


def test_commands_are_accepted():
    (commands,) = re.findall(r"```bash\n(.*?)```", PAGE, re.S)
    found = []
    for command in commands.replace("\\\n", "").splitlines():
        program, job, *arguments = shlex.split(command, comments=True)
        assert (program, job) == ("torchrec-mtl", "train")
        overrides = [argument for argument in arguments if "=" in argument]
        found.append(make_config(SYSTEMS["tafe"], Settings(), overrides).histories)
    assert found == [HistoryConfig({"recent": "item"}), HistoryConfig({"recent": "item"}, 50, 1, 2)]


def test_the_program_runs_as_it_stands_and_only_the_named_shardings_are_refused():
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    exec(program, names := {})
    assert names["features"].embedding_names == ["user", "item", "recent"]
    (collection,) = (module for module in names["model"].modules() if isinstance(module, EmbeddingCollection))
    (sentence,) = re.findall(r"all optimizers and shardings.*?\.", PAGE, re.S)
    for sharding in SHARDINGS:
        config = TrainingConfig(tables={"t_item": {"sharding": sharding}})
        if f"`{sharding}`" in sentence:
            with pytest.raises(InputError, match=f"={sharding!r}"):
                check_rows(collection, config)
        else:
            check_rows(collection, config)
