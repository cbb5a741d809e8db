"""`benchmarks.gpu` without a GPU: all of its steps on a CPU, and what it does when one goes wrong."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import record
from benchmarks.gpu import __main__ as program
from benchmarks.gpu import device, figure_8, process, stack, visit
from benchmarks.gpu.environment import adopt
from benchmarks.gpu.steps import RECOMMENDER, STEPS, Step
from torchrec_mtl.jobs.environment import worker_environment

ALONE = [step.name for step in STEPS if not set(RECOMMENDER) & set(step.needs)]
WITHOUT = """
import sys
for name in ("torchrec", "fbgemm_gpu", "polars", "pyarrow", "pandas", "sklearn", "torchx"):
    sys.modules[name] = None  # an import of it fails
"""
ENVIRONMENT = {**os.environ, **worker_environment(1, processes=1), "OMP_NUM_THREADS": "1"}


def started(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command, variables = [sys.executable, "-W", "ignore", *arguments], {**ENVIRONMENT, **environment}
    return subprocess.run(command, cwd=record.ROOT, env=variables, capture_output=True, text=True, check=False)


def told(step: str, way: str, *arguments: str, seconds: int = 60) -> Step:
    return Step(step, seconds, "tests.benchmarks.gpu_step", (way, *arguments))


def outcomes(rows: list[dict[str, str]]) -> list[tuple[str, str]]:
    """Of each step that came to an end or failed."""
    return [(row["step"], row["what"]) for row in rows if row["what"] in (process.ENDED, process.FAILED)]


def runs(pid: str) -> bool:
    state = Path(f"/proc/{pid}/stat")
    return state.is_file() and ") Z" not in state.read_text()


def wait_until(condition) -> bool:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What the first call leaves where there is torch alone."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "sitecustomize.py").write_text(WITHOUT, encoding="utf-8")
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    done = started("-m", "benchmarks.gpu", "--pretend", PYTHONPATH=path, OUT=str(folder))
    return folder, visit.read(folder), done


@pytest.fixture(scope="module")
def rest(alone, tmp_path_factory):
    """What a second call makes of that where all packages are installed."""
    folder = tmp_path_factory.mktemp("second")
    done = started("-m", "benchmarks.gpu", "--pretend", "--before", str(alone[0]), OUT=str(folder))
    return folder, visit.read(folder), done


@pytest.mark.verify
def test_all_but_training_and_embeddings_needs_torch_alone(alone):
    _, rows, done = alone
    assert [step for step, what in outcomes(rows) if what == process.ENDED] == ALONE, done.stderr
    assert len(ALONE) == len(STEPS) - 2
    failed = [(row["step"], row["error"]) for row in rows if row["error"]]
    missing = f"not installed: {', '.join(RECOMMENDER)}"
    assert failed == [(step.name, missing) for step in STEPS if step.name not in ALONE]
    assert done.returncode == 1
    assert "error: 2 rows have an error: figure 8; embeddings" in done.stderr


@pytest.mark.verify
def test_a_second_call_goes_on_where_the_first_stopped(alone, rest):
    (_, before, _), (folder, rows, done) = alone, rest
    assert rows[: len(before)] == [{name: row.get(name, "") for name in rows[0]} for row in before]
    assert outcomes(rows)[len(outcomes(before)) :] == [("figure 8", "ended"), ("embeddings", "ended")], done.stderr
    assert done.returncode == 0
    assert [file.name for file in folder.iterdir()] == [visit.FILE]


def test_every_row_says_when_and_where(rest):
    assert all(row[name] for row in rest[1] for name in ("step", "what", *record.CIRCUMSTANCES))


def test_the_columns_that_the_page_names_are_there(rest):
    page = (record.ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_]+)`", page.partition("## What comes out")[2].partition("## Kernels")[0]))
    values = {value for row in rest[1] for value in (row["candidate"], row["attention"])}
    assert named - {"math", "cuda"} <= values | set(rest[1][0])


def test_each_step_measures_what_it_is_for(rest):
    found = {step.name: [row for row in rest[1] if row["step"] == step.name] for step in STEPS}
    of_stack = ["eager", "sdpa", "compact", "triton"]
    for name, candidates in [("smoke", ["eager", "triton"]), ("stack, large, 100 % selected", of_stack)]:
        measured = [(row["candidate"], row["direction"]) for row in found[name] if row["median"]]
        assert measured == [(candidate, direction) for candidate in candidates for direction in stack.DIRECTIONS]
    assert {row["candidate"] for row in found["stack, mid, compiled"] if row["median"]} == set(stack.COMPILED)
    of_figure = [(row["candidate"], row["part"]) for row in found["figure 8"] if row["to_shared_bottom"]]
    assert of_figure == [(candidate, part) for candidate in figure_8.SYSTEMS for part in figure_8.PARTS]
    assert {row["candidate"] for row in found["embeddings"] if row["speed_to_baseline"]} >= {"TBE", "ours table_wise"}
    assert {row["outcome"] for row in found["tests/gpu"] if row["what"] == "test"} == {"skipped"}


def test_the_attention_that_pytorch_took_is_recorded(rest):
    taken = {(row["candidate"], row["attention"]) for row in rest[1] if row["what"] == "stack"}
    assert taken >= {("sdpa", "flash"), ("compact", "flash")}
    assert all(path in ("sdpa", "compact") for path, attention in taken if attention)


@pytest.mark.parametrize("backend", ["FLASH_ATTENTION", "MATH"])
def test_which_attention_runs_is_seen(backend):
    query = torch.randn(2, 2, 4, 8, requires_grad=True)

    def both() -> None:
        torch.nn.functional.scaled_dot_product_attention(query, query, query).sum().backward()

    with torch.nn.attention.sdpa_kernel(getattr(torch.nn.attention.SDPBackend, backend)):
        assert device.attention_of(both) == backend.split("_")[0].lower()


@pytest.fixture
def visited(tmp_path, monkeypatch):
    """Takes steps in this process; returns their rows and the message of its end."""
    for name, value in {**ENVIRONMENT, "OUT": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(visit, "ON_A_CPU", 1)

    def take(*steps: Step) -> tuple[list[dict[str, str]], str]:
        with pytest.raises(SystemExit) as ended:
            visit.main(time.monotonic() + 500, None, True, steps)
        return visit.read(tmp_path), str(ended.value)

    return take


def test_a_step_that_goes_wrong_has_a_row_and_the_others_go_on(tmp_path, visited, capsys):
    ways = [told("raising", "raises"), told("crashing", "crashes"), told("hanging", "hangs", str(tmp_path / "pid"))]
    ways[2] = ways[2]._replace(seconds=15)
    steps = [told("good", "ends"), *ways, told("long", "ends", seconds=1000), told("next", "ends")]
    rows, message = visited(*steps)
    assert message == "error: 3 rows have an error: raising; crashing; hanging"
    assert "not begun, because it could not have ended in time: long\n" in capsys.readouterr().out
    assert [row["step"] for row in rows if row["candidate"]] == [step.name for step in steps if step.name != "long"]
    assert {row["step"]: row["error"] for row in rows if row["error"]} == {
        "raising": "RuntimeError: out of memory",
        "crashing": f"its process ended with status {-signal.SIGABRT}",
        "hanging": "was stopped after 15 s",
    }
    assert wait_until(lambda: not runs((tmp_path / "pid").read_text()))
    assert [step.name for step in visit.left(rows, steps)] == ["long", "raising", "crashing", "hanging"]


def test_if_the_first_step_fails_the_next_shares_nothing_with_it(visited):
    rows, _ = visited(told("raising", "raises"), told("good", "ends"))
    assert [row["candidate"] for row in rows if row["candidate"]] == ["in a fork", "from nothing"]


KILLED = """
import os
from benchmarks.gpu import __main__ as program, visit
from benchmarks.gpu.steps import Step
main, step = visit.main, Step("hanging", 60, "tests.benchmarks.gpu_step", ("hangs", os.environ["PID"]))
visit.main = lambda *arguments: main(*arguments[:3], [step])
if __name__ == "__main__":
    program.main()
"""


@pytest.mark.parametrize("kill", [signal.SIGTERM, signal.SIGKILL])
def test_what_was_measured_is_there_when_the_program_is_killed(kill, tmp_path):
    script, pid = tmp_path / "killed.py", tmp_path / "pid"
    script.write_text(KILLED, encoding="utf-8")
    variables = {**ENVIRONMENT, "OUT": str(tmp_path), "PID": str(pid), "PYTHONPATH": str(record.ROOT)}
    command = [sys.executable, "-W", "ignore", str(script), "--pretend"]
    with subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True) as started:
        try:
            assert started.stdout.readline().startswith("gpu: hanging stack")
            assert wait_until(lambda: pid.is_file() and pid.read_text())
        finally:
            started.send_signal(kill)
    (row,) = visit.read(tmp_path)
    assert (row["step"], row["candidate"]) == ("hanging", "in a fork")
    child = pid.read_text()
    if kill == signal.SIGTERM:
        assert wait_until(lambda: not runs(child))
    elif runs(child):
        os.killpg(os.getpgid(int(child)), signal.SIGKILL)


def test_what_processes_share_does_not_ask_for_a_gpu():
    code = f"""
import torch
asked = []
for name in ("is_available", "device_count", "current_device", "_lazy_init"):
    setattr(torch.cuda, name, lambda *_, name=name: asked.append(name))
import {", ".join(process.PRELOADED)}
print(asked)
"""
    done = started("-c", code)
    assert done.stdout == "[]\n", done.stderr


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="error: there is no GPU here"):
        visit.main(time.monotonic(), None, False)


@pytest.mark.parametrize("only", [["smoke"], ["embeddings", "figure 8"]])
def test_only_the_steps_that_are_named_are_taken_in_their_order(only, monkeypatch):
    taken = []
    monkeypatch.setattr("sys.argv", ["gpu", "--pretend", "--only", *only])
    monkeypatch.setattr(program, "ensure_environment", lambda **_: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(visit, "main", lambda deadline, before, pretend, steps: taken.extend(steps))
    program.main()
    assert [step.name for step in taken] == sorted(only, reverse=True)


def test_a_step_that_does_not_exist_is_refused_with_the_names(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gpu", "--only", "figure 9"])
    with pytest.raises(SystemExit):
        program.main()
    assert "--only (='figure 9') must be one of: smoke; stack, paper, 25 % selected;" in capsys.readouterr().err


def test_steps_are_in_the_order_of_their_worth_and_what_matters_fits_into_a_call():
    names = [step.name for step in STEPS]
    assert len(set(names)) == len(names)
    first = ["smoke", *(name for name in names if name.endswith((" 25 % selected", " 100 % selected")))]
    assert names[: len(first) + 3] == [*first, "figure 8", "embeddings", "tests/gpu"]
    assert sum(step.seconds for step in STEPS[: len(first)]) <= 280


def test_kernels_in_cuda_cpp_are_measured_where_they_are_built(monkeypatch):
    for reason, expected in (("it is not built", False), (None, True)):
        monkeypatch.setattr(stack.cuda, "why_not_sizes", lambda *sizes, reason=reason: reason)
        assert stack.can_run("cuda", stack.PRETENDED, "cuda") == expected
        assert stack.can_run("triton", stack.PRETENDED, "cuda")


def test_a_compiled_baseline_meets_no_symbolic_size():
    sizes = []

    def backend(graph, inputs):
        sizes.extend(size for x in inputs for size in getattr(x, "shape", [x]))
        return graph.forward

    for batch in (3, 5):
        run = stack.compiled(lambda x: x.square().sum(), backend=backend)
        assert run(torch.ones(batch, 2)) == 2 * batch
    assert sizes == [3, 2, 5, 2]


PRECOMPILE = """
import sys
from pathlib import Path
from itertools import chain, islice
from benchmarks.gpu.precompile import launches, precompile, training_launches
from benchmarks.gpu.stack import PRETENDED
training = islice(training_launches(), int(sys.argv[2]))
sizes = {"tiny": PRETENDED, "another batch": PRETENDED._replace(B=1)}
precompile(Path(sys.argv[1]), chain(launches(sizes, {}), training))
"""


@pytest.mark.verify
@pytest.mark.slow
def test_kernels_are_compiled_for_hopper_without_a_gpu_and_can_be_carried(tmp_path):
    pytest.importorskip("triton")
    made, moved = tmp_path / "made", tmp_path / "moved"
    done = started("-c", PRECOMPILE, str(made), "1", TRITON_INTERPRET="0")
    assert "5 kernels in" in done.stdout, done.stderr  # forward with and without what the backward needs, backward
    described = [json.loads(file.read_text()) for file in made.rglob("[bf]*_kernel.json")]
    assert [kernel["target"]["arch"] for kernel in described] == [90] * 5
    shutil.move(made, moved)
    assert adopt(moved) == 5
    compiled = {file: file.stat().st_mtime_ns for file in moved.rglob("*.cubin")}
    started("-c", PRECOMPILE, str(moved), "0", TRITON_INTERPRET="0")
    assert {file: file.stat().st_mtime_ns for file in moved.rglob("*.cubin")} == compiled
