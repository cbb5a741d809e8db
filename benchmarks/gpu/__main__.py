"""Runs the CUDA part of all benchmarks in at most nine minutes: ``python -m benchmarks.gpu``. Not yet run on a GPU.

The tests that need a GPU come first: nothing wrong is timed. Then each program has its share of the time. The rows of
one that fails or is stopped are kept in a file with ``_partial`` in its name. Results go to ``$OUT`` if it is set, to
``benchmarks/results`` otherwise. The status is 1 if any program failed.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from benchmarks.record import RESULTS, ROOT
from torchrec_mtl.jobs.environment import worker_environment

TESTS, TESTS_SECONDS = ("-m", "pytest", "-q", "-n", "4", "tests/gpu"), 110
PROGRAMS = {  # module: most seconds, name of the results, arguments
    "attention": (150, "inducing_attention_cuda", ("--device", "cuda")),
    "embedding_throughput": (150, "embedding_throughput_cuda", ("--device", "cuda", "--repeats=5", "--pair-runs=2")),
    "training_step": (130, "training_step_cuda", ("--device", "cuda", "--repeats=3")),
}


def run(name: str, arguments: tuple[str, ...], seconds: float) -> bool:
    """Whether it ended well in time; its output goes to the screen."""
    began, environment = time.monotonic(), {**os.environ, **worker_environment(1, processes=1)}
    with subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=environment, start_new_session=True) as process:
        try:
            status = process.wait(seconds)
            outcome = f"failed with status {status}" if status else "ran"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # and the processes it started, which would disturb the next program
            status, outcome = 1, "was stopped"
    print(f"gpu: {name} {outcome} after {time.monotonic() - began:.0f} of {seconds} s", flush=True)
    return status == 0


def measure(program: str) -> bool:
    """Whether the program ran; if not, what it had measured is kept."""
    seconds, name, arguments = PROGRAMS[program]
    file = Path(os.environ.get("OUT") or RESULTS).absolute() / f"{name}.csv"
    partial = file.with_name(f"{file.name}.partial")
    partial.unlink(missing_ok=True)  # of an earlier run
    ran = run(program, ("-m", f"benchmarks.{program}", *arguments, "--results", str(file)), seconds)
    if partial.is_file():
        print(f"gpu: measured before that: {partial.rename(file.with_stem(f'{file.stem}_partial'))}", flush=True)
    return ran


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("error: there is no GPU here")
    if not run("tests", TESTS, TESTS_SECONDS):
        sys.exit("error: the tests on the GPU must pass first")
    failed = [program for program in PROGRAMS if not measure(program)]
    if failed:
        sys.exit(f"error: {len(failed)} of {len(PROGRAMS)} programs failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
