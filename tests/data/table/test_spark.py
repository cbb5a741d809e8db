import os
import shutil
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest

from torchrec_mtl.data.table import Table, Vocabulary
from torchrec_mtl.data.table.spark import prepare_table_on_spark
from torchrec_mtl.errors import InputError
from torchrec_mtl.tasks import TaskChain

PYSPARK = "pyspark==4.0.1"
ROOT = Path(__file__).parents[3]


def python_with_spark() -> Path:
    """The interpreter of an environment with pyspark and this process's packages, built once for the user."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchrec_mtl"
    here = sysconfig.get_path("purelib")
    folder = cache / "spark" / f"{PYSPARK}{here}".replace("==", "-").replace("/", "-")
    python, installed = folder / "bin" / "python", folder / "installed"
    if not installed.exists():  # written last: an interrupted install starts again
        venv.create(folder, clear=True, with_pip=True)
        (next(folder.glob("lib/python3*/site-packages")) / "here.pth").write_text(here)
        subprocess.run([python, "-m", "pip", "install", "-q", "--retries", "2", PYSPARK], check=True)
        installed.touch()
    return python


@pytest.mark.slow
@pytest.mark.skipif("TORCHREC_MTL_SPARK" not in os.environ, reason="installs 430 MB; set TORCHREC_MTL_SPARK to run it")
@pytest.mark.skipif(not shutil.which("java"), reason="needs Java")
def test_spark_prepares_what_one_machine_does():
    cases = [python_with_spark(), "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/data/table/spark_cases.py"]
    done = subprocess.run(cases, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_without_pyspark_the_refusal_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyspark.sql", None)  # not installed
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.csv").write_text("city,click\nRome,1\n")
    source = {split: str(tmp_path / f"{split}.csv") for split in ("train", "valid", "test")}
    table = Table("shop", source, TaskChain(["click"]), [Vocabulary("city")])
    with pytest.raises(InputError, match=r"must be installed: pip install 'torchrec_mtl\[spark\]'"):
        prepare_table_on_spark(table, tmp_path / "prepared")
    assert not (tmp_path / "prepared").exists()
