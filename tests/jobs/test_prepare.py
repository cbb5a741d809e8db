from pathlib import Path

import pytest

from tests.generators.ali_ccp import AliCcpGenerator
from tests.generators.taobao import TaobaoGenerator
from torchrec_mtl.__main__ import main
from torchrec_mtl.data import Schema
from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs.datasets import DATASETS, dataset_directory
from torchrec_mtl.training import monitor


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = AliCcpGenerator({"train": 900, "test": 300}, (0.3, 0.1), history_length=2)
    return generator.write(tmp_path_factory.mktemp("raw"))


def test_prepares_and_tells_what_it_found(
    raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(monitor, "SECONDS_BETWEEN_LINES", 0)
    arguments = ["ali_ccp", "--raw", str(raw), "--output", str(tmp_path / "out"), "--seed", "1"]
    assert main(["prepare", *arguments, "--protocol", "aitm"]) == 0
    told = capsys.readouterr()
    assert "train: 900 rows read" in told.out
    assert told.out.endswith(f"prepared: {tmp_path / 'out'}\n")
    assert "rows/s" in told.err
    assert Schema.load(tmp_path / "out").num_rows["test"] == 300
    assert main(["prepare", *arguments, "--protocol", "full"]) == 2
    assert capsys.readouterr().err.startswith("error: `output` (=")


def test_a_bad_row_exits_with_2(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in raw.glob("*.csv"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with (tmp_path / "sample_skeleton_test.csv").open("a") as file:
        file.write("1,2\n")
    arguments = ["ali_ccp", "--raw", str(tmp_path), "--output", str(tmp_path / "out")]
    assert main(["prepare", *arguments]) == 2
    assert "sample_skeleton_test.csv, line 301: must have 6 columns, not 2" in capsys.readouterr().err
    assert main(["prepare", *arguments, "--bad-rows", "quarantine", "--bad-rows-limit", "1"]) == 0
    assert "sample_skeleton_test.csv: 1 bad rows were put aside" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [[], ["ali_ccp"], ["ali_ccp", "--raw", "a", "--output", "b", "--protocol", "all"]]
)
def test_a_wrong_command_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", *arguments]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_known_by_name(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(InputError, match="`raw` must name the folder of ali_ccp's raw files"):
        dataset_directory("ali_ccp", DATASETS["ali_ccp"], 0.5)
    found = dataset_directory("ali_ccp", DATASETS["ali_ccp"], 0.5, str(raw))
    assert Schema.load(found).name == "ali_ccp-aitm"
    assert 100 < Schema.load(found).num_rows["test"] < 200
    assert dataset_directory("ali_ccp", DATASETS["ali_ccp"], 0.5, str(raw)) == found


def test_taobao(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    raw = TaobaoGenerator(800, (0.3, 0.1), behaviors_per_row=2).write(tmp_path / "raw")
    arguments = ["taobao", "--raw", str(raw), "--output", str(tmp_path / "out"), "--history-length", "3"]
    assert main(["prepare", *arguments, "--purchase-days", "1"]) == 0
    assert "800 impressions read" in capsys.readouterr().out
    schema = Schema.load(tmp_path / "out")
    assert (schema.tasks.names, schema.field_names[-1]) == (("click", "purchase"), "history_brand")
    assert main(["prepare", *arguments, "--min-count", "0"]) == 2
    assert capsys.readouterr().err == "error: `min_count` (=0) must be at least 1\n"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Schema.load(dataset_directory("taobao", DATASETS["taobao"], 1.0, str(raw))).tasks.names == ("click",)
