"""Runs every benchmark small: ``make bench-quick``, three minutes on two cores.

All but that of a service under load, which installs Locust: ``make verify`` runs it.

Each program does its checks and writes a CSV to ``build/bench-quick``; its figures mean little. Status 1 if any fails.
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.record import ROOT
from torchrec_mtl.jobs.environment import worker_environment

PROGRAMS = (  # the longest first
    *("scoring", "embedding_throughput", "training_step", "scaling", "peers"),
    *("attention", "zero_collision", "data_reading", "data_preparation", "table_preparation", "every_day"),
    *("late_labels", "balancing", "peers.quality", "over_arches", "model_costs", "histories"),
)


def run(program: str) -> bool:
    """Whether the program ran; if not, the end of its output is printed."""
    began = time.monotonic()
    command = [sys.executable, "-W", "ignore", "-m", f"benchmarks.{program}", "--quick"]
    environment = {**os.environ, **worker_environment(cores=1, processes=1)}  # without these it would start twice
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, **output)
    outcome = f"{program:24} {'failed' if done.returncode else 'ran'} in {time.monotonic() - began:.0f} s"
    last = done.stdout.splitlines()[-30:] if done.returncode else []
    print("\n    ".join([outcome, *last]), flush=True)
    return done.returncode == 0


def main() -> None:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        failed = [program for program, ran in zip(PROGRAMS, pool.map(run, PROGRAMS), strict=True) if not ran]
    if failed:
        sys.exit(f"error: {len(failed)} of {len(PROGRAMS)} benchmarks failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
