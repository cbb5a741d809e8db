"""Runs every benchmark small: ``make bench-quick``, four minutes on two cores; or those in ``ARGS="peers scoring"``.

All but that of a service under load, which installs Locust: ``make verify`` runs it.

Each program does its checks and writes a CSV to ``build/bench-quick``; its figures mean little. Status 1 if any fails.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks.record import ROOT
from torchrec_mtl.jobs.environment import worker_environment

PROGRAMS = (  # the longest first
    *("scoring", "embedding_throughput", "training_step", "scaling", "peers"),
    *("attention", "zero_collision", "data_reading", "data_preparation", "table_preparation", "every_day"),
    *("late_labels", "balancing", "peers.quality", "over_arches", "model_costs", "histories", "simulated_funnels"),
    *("simulated_funnels.tafe", "roofline"),
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


def main(named: Sequence[str] = ()) -> None:
    for program in named:
        if program not in PROGRAMS:
            sys.exit(f"error: benchmark {program!r} must be one of {', '.join(PROGRAMS)}")
    programs = named or PROGRAMS
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        failed = [program for program, ran in zip(programs, pool.map(run, programs), strict=True) if not ran]
    if failed:
        sys.exit(f"error: {len(failed)} of {len(programs)} benchmarks failed: {', '.join(failed)}")


if __name__ == "__main__":
    main(sys.argv[1:])
