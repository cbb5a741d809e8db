"""The training job of one rank that gets stuck: ``torchrun tests/launch/hanging.py WHERE train ...``."""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from torchrec.distributed.planner import EmbeddingShardingPlanner

from torchrec_mtl.__main__ import main
from torchrec_mtl.training import distributed
from torchrec_mtl.training.loop import TrainingLoop


def stuck_in_python() -> None:
    time.sleep(10_000)


def stuck_in_c() -> None:
    ctypes.PyDLL(None).sleep(10_000)  # holds Python's lock


def stopped() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def before(owner: Any, name: str, number: int, rank: int, stuck: Callable[[], None]) -> None:
    """Makes call ``number`` of ``owner.name`` on ``rank`` get stuck first."""
    called, calls = getattr(owner, name), []

    def call(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        if len(calls) == number and os.environ["RANK"] == str(rank):
            stuck()
        return called(*arguments, **options)

    setattr(owner, name, call)


FAULTS = {
    "plan": (EmbeddingShardingPlanner, "plan", 1, 0, stuck_in_python),
    "distribute": (distributed, "start_tables", 1, 1, stuck_in_python),
    "step": (TrainingLoop, "take_step", 5, 1, stuck_in_python),
    "lock": (TrainingLoop, "take_step", 5, 1, stuck_in_c),
    "stopped": (TrainingLoop, "take_step", 5, 1, stopped),
}

if __name__ == "__main__":
    before(*FAULTS[sys.argv[1]])
    sys.exit(main(sys.argv[2:]))
