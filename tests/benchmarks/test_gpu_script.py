"""`benchmarks.gpu`, as far as it goes without a GPU: its limits, its arguments, what it keeps, first figures."""

import json
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import record
from benchmarks.gpu import __main__ as gpu

FAILING = """
import sys
from pathlib import Path
from benchmarks import record
with record.Results(Path(sys.argv[-1])) as results:
    results.add({"candidate": "a", **record.spread([1.0], "ms")})
    raise RuntimeError("out of memory")
"""
TORCH_ALONE = """
import sys
for name in ("torchrec", "fbgemm_gpu", "polars", "pyarrow", "pandas", "sklearn", "torchx"):
    sys.modules[name] = None  # an import of it fails
sys.argv = ["first", "--tiny", "--seconds", sys.argv[1]]
from benchmarks.gpu import first
first.main()
"""
PRECOMPILE = """
import sys
from pathlib import Path
from benchmarks.attention import TINY
from benchmarks.gpu.precompile import precompile
precompile(Path(sys.argv[1]), TINY, {})
"""


def started(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command, variables = [sys.executable, "-c", code, *arguments], {**os.environ, **environment}
    return subprocess.run(command, cwd=record.ROOT, env=variables, capture_output=True, text=True, check=False)


def test_all_of_it_takes_nine_minutes_at_most():
    assert gpu.TESTS_SECONDS + sum(seconds for seconds, *_ in gpu.PROGRAMS.values()) <= 9 * 60


@pytest.mark.parametrize("program", gpu.PROGRAMS)
def test_programs_know_the_options_they_are_given(program, monkeypatch, capsys):
    *_, arguments = gpu.PROGRAMS[program]
    monkeypatch.setattr(sys, "argv", [program, *arguments, "--results", "x.csv", "--help"])
    with pytest.raises(SystemExit) as exit_status:
        runpy.run_module(f"benchmarks.{program}", run_name="__main__", alter_sys=True)
    assert not exit_status.value.code
    output = capsys.readouterr().out
    assert all(option.partition("=")[0] in output for option in arguments if option.startswith("--"))


def test_a_program_that_is_too_slow_is_stopped_with_its_processes(tmp_path, capfd):
    file = tmp_path / "pid"
    child = f"import os, time; open({str(file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert not gpu.run("sleeper", ("-c", code), 5)
    assert gpu.run("quick one", ("-c", "pass"), 60)
    output = capfd.readouterr().out
    assert "sleeper was stopped after" in output
    assert "quick one ran after" in output
    state = Path(f"/proc/{file.read_text()}/stat")
    deadline = time.monotonic() + 5
    while state.is_file() and ") Z" not in state.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not state.is_file() or ") Z" in state.read_text()


def test_the_rows_of_a_program_that_fails_are_kept(tmp_path, monkeypatch, capfd):
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "failing.py").write_text(FAILING, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OUT", str(tmp_path / "out"))
    monkeypatch.setitem(gpu.PROGRAMS, "failing", (100, "failing_cuda", ()))
    assert not gpu.measure("failing")
    kept = tmp_path / "out" / "failing_cuda_partial.csv"
    assert kept.read_text(encoding="utf-8").splitlines()[1].startswith("a,ms,1.0")
    assert [file.name for file in (tmp_path / "out").iterdir()] == [kept.name]
    assert f"measured before that: {kept}" in capfd.readouterr().out


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="error: there is no GPU here"):
        gpu.main()


def first_rows(folder: Path, seconds: str) -> tuple[list[dict[str, object]], str]:
    done = started(TORCH_ALONE, seconds, OUT=str(folder), TRITON_INTERPRET="1")
    return [json.loads(line) for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()], done.stderr


def test_first_figures_need_torch_alone(tmp_path):
    pytest.importorskip("triton")
    (about, *rows), errors = first_rows(tmp_path, "1")
    assert about["device"] == "cpu", errors
    assert rows[0]["candidate"] == "triton"
    assert all(row["median"] > 0 for row in rows)


def test_first_figures_stop_in_time(tmp_path):
    rows, errors = first_rows(tmp_path, "0")
    assert len(rows) == 1
    assert "stopped after 0 s" in errors


@pytest.mark.slow
def test_kernels_are_compiled_for_hopper_without_a_gpu(tmp_path):
    pytest.importorskip("triton")
    done = started(PRECOMPILE, str(tmp_path), TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")
    assert "3 kernels in" in done.stdout, done.stderr  # forward with and without what the backward needs, backward
    described = [json.loads(file.read_text()) for file in tmp_path.rglob("[bf]*_kernel.json")]
    assert [kernel["target"]["arch"] for kernel in described] == [90, 90, 90]
