"""The CUDA part of all benchmarks, in at most nine minutes: ``python -m benchmarks.gpu``. Not yet run on a GPU.

Programs run one after the other, each with its share of the time; one that is not done by then is stopped and told, and
what it had not written is lost. What they leave in ``benchmarks/results`` is called ``..._cuda.csv``; status 1 if any
failed. First come the tests that need a GPU: no figures of what is wrong.
"""

import os
import subprocess
import sys
import time

import torch

from benchmarks.record import RESULTS, ROOT
from torchrec_mtl.jobs.environment import worker_environment

TESTS = ("-m", "pytest", "-q", "tests/gpu")
PROGRAMS = {  # module: most seconds, arguments
    "gpu_inducing_attention": (180, ()),
    "embedding_throughput": (150, ("--device", "cuda", "--repeats", "5", "--pair-runs", "2")),
    "training_step": (140, ("--device", "cuda", "--repeats", "3")),
}
TESTS_SECONDS = 60


def run(name: str, arguments: tuple[str, ...], seconds: float) -> bool:
    """Whether it ended well in time; its output goes to the screen."""
    began = time.monotonic()
    try:
        command, environment = [sys.executable, *arguments], {**os.environ, **worker_environment(1, processes=1)}
        status = subprocess.run(command, cwd=ROOT, env=environment, check=False, timeout=seconds).returncode
        told = f"ended with status {status}" if status else "ran"
    except subprocess.TimeoutExpired:
        status, told = 1, "was stopped"
    print(f"gpu: {name} {told} after {time.monotonic() - began:.0f} of {seconds} s", flush=True)
    return status == 0


def main() -> None:
    if not torch.cuda.is_available():
        sys.exit("error: there is no GPU here")
    if not run("tests", TESTS, TESTS_SECONDS):
        sys.exit("error: the tests on the GPU must pass first")
    failed = []
    for program, (seconds, arguments) in PROGRAMS.items():
        file = RESULTS / f"{program.removeprefix('gpu_')}_cuda.csv"
        if not run(program, ("-m", f"benchmarks.{program}", *arguments, "--results", str(file)), seconds):
            failed.append(program)
    if failed:
        sys.exit(f"error: {len(failed)} of {len(PROGRAMS)} programs failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
