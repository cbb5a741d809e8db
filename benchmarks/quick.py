"""Runs every benchmark small: ``make bench-quick``, three minutes on two cores.

Each program does its checks and writes a CSV to ``build/bench-quick``; its figures mean little. Status 1 if anything
fails.
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.record import ROOT
from torchrec_mtl.jobs.environment import worker_environment

COMMANDS = {  # the longest first
    "embedding_throughput": ("--quick",),
    "training_step": ("--quick",),
    "scaling": ("--quick",),
    "peers": ("--quick",),
    "gpu_inducing_attention": ("--quick",),
    "inducing_attention_cpu": ("--quick",),
    "data_reading": ("--quick",),
    "data_preparation": ("--quick",),
}


def run(program: str) -> tuple[str, float, subprocess.CompletedProcess[str]]:
    """With its seconds and what it printed."""
    began = time.monotonic()
    command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{program}", *COMMANDS[program]]
    environment = {**os.environ, **worker_environment(cores=1, processes=1)}  # else each would start itself over
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, **output)
    return program, time.monotonic() - began, done


def main() -> None:
    failed = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for program, seconds, done in pool.map(run, COMMANDS):
            print(f"{program:32} {'failed' if done.returncode else 'ran'} in {seconds:.0f} s", flush=True)
            if done.returncode:
                failed.append(program)
                print("\n".join(f"    {line}" for line in done.stdout.splitlines()[-30:]), flush=True)
    if failed:
        sys.exit(f"error: {len(failed)} of {len(COMMANDS)} benchmarks failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
