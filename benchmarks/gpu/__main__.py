"""What this library does on a GPU, in minutes: ``python -m benchmarks.gpu``; see docs/gpu.md.

Steps follow each other in the order of `benchmarks.gpu.steps.STEPS`, what matters most first, or those of them that
``--only`` names, each in a process of its own: one that crashes, fails or takes too long has a row with its ``error``,
and the next one starts. A step starts only if its limit fits into what is left of ``--seconds``. Each row is in
``gpu.csv`` as soon as it is measured, in ``$OUT`` if it is set, otherwise in ``benchmarks/results``. Another call goes
on from the rows that are there, or from those in ``--before FOLDER``: it takes the steps that have not come to their
end, those that failed last. The status is 1 if a step failed.
"""

import argparse
import os
import signal
import sys
import time

from benchmarks.gpu.environment import KERNELS, adopt, ensure_environment
from benchmarks.gpu.steps import STEPS
from torchrec_mtl.jobs.environment import worker_environment

_BEGAN = time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, help="of all steps together; 280, with --pretend 2800")
    parser.add_argument("--before", metavar="FOLDER", help="where an earlier call has left its gpu.csv")
    parser.add_argument("--only", metavar="STEP", nargs="+", help="of all steps, by name")
    parser.add_argument("--pretend", action="store_true", help="everything tiny on a CPU, with interpreted kernels")
    arguments = parser.parse_args()
    wanted = arguments.only or [step.name for step in STEPS]
    if unknown := sorted(set(wanted) - {step.name for step in STEPS}):
        parser.error(f"--only (={unknown[0]!r}) must be one of: {'; '.join(step.name for step in STEPS)}")
    kernels = {"TRITON_CACHE_DIR": str(KERNELS)} if KERNELS.is_dir() and "TRITON_CACHE_DIR" not in os.environ else {}
    ensure_environment(
        **worker_environment(1, processes=1),
        **kernels,
        TRITON_INTERPRET="1" if arguments.pretend else "0",
        PYTORCH_NVML_BASED_CUDA_CHECK="1",  # a process that was asked for GPUs in another way cannot be forked
    )
    if kernels:
        print(f"gpu: {adopt(KERNELS)} kernels were compiled ahead", file=sys.stderr)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: terminated"))  # so that it stops the step that runs
    from benchmarks.gpu import visit  # imports torch

    seconds = arguments.seconds or (2800 if arguments.pretend else 280)
    steps = [step for step in STEPS if step.name in wanted]
    visit.main(_BEGAN + seconds, arguments.before, arguments.pretend, steps)


if __name__ == "__main__":
    main()
