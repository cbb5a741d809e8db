"""The command line: ``torchrec-mtl JOB``, ``python -m torchrec_mtl JOB`` or ``torchrun -m torchrec_mtl JOB``."""

import importlib
import sys
from collections.abc import Sequence

from torchrec_mtl.errors import InputError, TrainingError, not_one_of
from torchrec_mtl.jobs.messages import quiet_libraries

JOBS = {  # name: module, what it does
    "train": ("torchrec_mtl.jobs.train", "train systems on a funnel and report them side by side"),
    "compare": ("torchrec_mtl.jobs.compare.job", "compare systems: a search, seeds, one report"),
    "prepare": ("torchrec_mtl.jobs.prepare", "prepare any table, or a public data set, from raw files"),
    "evaluate": ("torchrec_mtl.jobs.evaluate", "measure a trained run, whole and by slices"),
    "predict": ("torchrec_mtl.jobs.predict", "score rows with a trained run"),
    "calibrate": ("torchrec_mtl.jobs.calibrate", "calibrate the probabilities of a trained run"),
    "export": ("torchrec_mtl.jobs.export", "make a package of a trained run that scores without the training code"),
}
USAGE = "\n".join(
    [
        "usage: torchrec-mtl JOB ...; torchrec-mtl JOB --help says what a job takes",
        "",
        *(f"  {name:<9} {what}" for name, (_, what) in JOBS.items()),
    ]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a job and returns its status; on an error prints one sentence and returns 2 for a user's mistake, else 1.

    After Ctrl-C, the status is 130.

    Example::

        >>> main(["--help"])
        usage: torchrec-mtl JOB ...; torchrec-mtl JOB --help says what a job takes
        <BLANKLINE>
          train     train systems on a funnel and report them side by side
          compare   compare systems: a search, seeds, one report
          prepare   prepare any table, or a public data set, from raw files
          evaluate  measure a trained run, whole and by slices
          predict   score rows with a trained run
          calibrate calibrate the probabilities of a trained run
          export    make a package of a trained run that scores without the training code
        0
    """
    job, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if job in ("-h", "--help"):
        print(USAGE)
        return 0
    try:
        if job not in JOBS:
            raise InputError(not_one_of("job", job, JOBS))
        importlib.import_module("torchrec_mtl.stack")  # refuses what is missing or does not go together
        quiet_libraries()
        status: int = importlib.import_module(JOBS[job][0]).main(rest)
    except (InputError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print("error: interrupted by Ctrl-C; what was saved before stays", file=sys.stderr)
        return 130
    return status


if __name__ == "__main__":
    sys.exit(main())
