"""Runs a function on the ranks of a group, in new processes."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from benchmarks.embedding_throughput.check import WrongCandidateError
from tests import processes


def in_ranks(function: Callable[..., Any], world_size: int, device: str, *arguments: object) -> Any:
    """What ``function`` returns on the first rank.

    Raises:
        WrongCandidateError: if it raises that, which it must do on all ranks.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "returned.json"
        backend = "nccl" if device == "cuda" else "gloo"
        processes.run(_returned, world_size, function, str(file), *arguments, backend=backend)
        found = json.loads(file.read_text())
    if "wrong" in found:
        raise WrongCandidateError(found["wrong"])
    return found["returned"]


def _returned(function: Callable[..., Any], file: str, *arguments: object) -> None:
    try:
        found = {"returned": function(*arguments)}
    except WrongCandidateError as error:
        found = {"wrong": str(error)}
    if dist.get_rank() == 0:
        Path(file).write_text(json.dumps(found))
