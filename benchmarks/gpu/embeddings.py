"""Embedding throughput at five points, as `benchmarks.embedding_throughput` measures it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.embedding_throughput.__main__ import DMP, OURS, QUICK, throughput_rows
from benchmarks.embedding_throughput.candidates import runs
from benchmarks.embedding_throughput.measure import Job, check, throughput
from benchmarks.embedding_throughput.workload import ADAGRAD
from benchmarks.record import Row
from torchrec_mtl.training.process_group import process_group

CANDIDATES = ("TBE", "nn.EmbeddingBag", "EBC", DMP, OURS)
POINTS: tuple[tuple[str, str, dict[str, Any]], ...] = (  # what differs from the base, optimizer, changes
    ("base", ADAGRAD, {}),
    ("base", "", {}),
    ("width", ADAGRAD, {"embedding_dim": 128}),
    ("batch", ADAGRAD, {"batch_size": 65536}),
    ("precision", "", {"precision": "fp16"}),
)


def measure(add: Callable[[Row], None], pretend: bool) -> None:
    """Rows of each point; a point where a candidate is wrong has one with its ``error``."""
    device, base = (torch.device("cpu"), replace(QUICK, repeats=1)) if pretend else (torch.device("cuda", 0), None)
    base = base or Job(repeats=5, ids_a_turn=2**20, device="cuda", copy_mib=4096)
    with process_group(device):
        for axis, optimizer, changes in POINTS[:2] if pretend else POINTS:
            workload = replace(base.workload, **changes)
            able = tuple(name for name in CANDIDATES if runs(name, workload, 1, base.device, optimizer))
            job = replace(base, workload=workload, candidates=able, axis=axis, optimizer=optimizer)
            wrong = check(job, device)
            if wrong:
                add({"what": "embeddings", "axis": axis, "optimizer": optimizer, "error": wrong})
                continue
            for row in throughput_rows(job, *throughput(job, device)):
                add({"what": "embeddings", **row})
