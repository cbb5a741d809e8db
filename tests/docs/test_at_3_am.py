"""docs/at_3_am.md: the statuses and alarms are those that there are."""

import re
import sys
from pathlib import Path

from torchrec_mtl import __main__
from torchrec_mtl.errors import InputError, TrainingError
from torchrec_mtl.jobs.daily.job import BEYOND_BOUNDS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "at_3_am.md").read_text(encoding="utf-8")
STATUSES = re.findall(r"^\| (\d+)", PAGE, re.M)


def test_every_status_of_the_program_has_a_row(monkeypatch, capsys):
    given = {__main__.main(["--help"]), BEYOND_BOUNDS}
    for error in (InputError("x"), TrainingError("x"), KeyboardInterrupt()):

        def fail(_, error=error):
            raise error

        monkeypatch.setitem(sys.modules, "job", type(sys)("job"))
        monkeypatch.setattr(sys.modules["job"], "main", fail, raising=False)
        monkeypatch.setitem(__main__.JOBS, "train", ("job", ""))
        given.add(__main__.main(["train"]))
    capsys.readouterr()
    sources = "".join(path.read_text() for path in (ROOT / "torchrec_mtl").rglob("*.py"))
    given |= {int(status) for status in re.findall(r"(?:_exit|sys\.exit)\((\d+)\)", sources)}
    assert sorted(map(int, STATUSES)) == [*sorted(given), 137]


def test_every_alarm_of_the_service_is_one():
    source = (ROOT / "examples" / "service" / "watching.py").read_text()
    for name in re.findall(r"`service_(\w+)`", PAGE):
        stem = name.removesuffix("_total")
        assert any(f'"{part}"' in source for part in (f"service_{stem}", stem, stem.rpartition("_")[2])), name
