"""How a step's parts grow with what a user may double, beside what a count says."""

import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.training_step import clock, parts
from benchmarks.training_step.case import Case, Size
from torchrec_mtl.data import MultiTaskBatch
from torchrec_mtl.jobs.build import build_model
from torchrec_mtl.modules import FeatureArch

GROUPS = {
    "reader": (clock.READER,),
    "transfer": ("transfer",),
    "tables": (clock.TABLES_FORWARD, clock.TABLES_BACKWARD),
    "over-arch": (clock.OVER_ARCH_FORWARD, clock.OVER_ARCH_BACKWARD),
    "loss": ("loss",),
    "optimizer": ("optimizer",),
}
STEP = "whole step"
BASE = "base"


def changes(base: Size, system: str) -> dict[str, Size]:
    """The base, and it with one thing more; inducing points where the model has any."""
    sizes = {
        BASE: base,
        "batch x2": replace(base, batch_size=2 * base.batch_size),
        "fields x2": replace(base, num_fields=2 * base.num_fields),
        "rows of tables x10": replace(base, fewest_rows=10 * base.fewest_rows, most_rows=10 * base.most_rows),
        "tasks x2": replace(base, num_tasks=2 * base.num_tasks),
    }
    if system == "tafe":
        sizes["inducing points x2"] = replace(base, num_inducing_points=2 * base.num_inducing_points)
    return sizes


@dataclass(frozen=True)
class Counted:
    """Of a step, without running it at its size.

    Args:
        flops: of the over-arch and the loss, forward and backward, as the equations have it: products with inducing
            points that are not selected are counted.
        dense_parameters: that the optimizer steps after the backward pass.
        ids: of the batch.
        lookups: in tables; Single-Task's tasks have tables of their own.
        labels: of the batch.
    """

    flops: int
    dense_parameters: int
    ids: int
    lookups: int
    labels: int

    def growth(self, base: "Counted") -> dict[str, float]:
        """Of each part, if it were as its count is."""
        tables, flops = self.lookups / base.lookups, self.flops / base.flops
        labels = self.labels / base.labels
        of_batch = (self.ids + self.labels) / (base.ids + base.labels)
        optimizer = self.dense_parameters / base.dense_parameters
        counted = (of_batch, of_batch, tables, flops, labels, optimizer)
        return dict(zip(GROUPS, counted, strict=True))


def count(system: str, size: Size, rows: int = 8) -> Counted:
    """By `FlopCounterMode` on ``rows`` rows, tables left out."""
    plain = {"TORCHREC_MTL_ATTENTION": "reference", "TORCHREC_MTL_INDUCING_ATTENTION": "reference"}
    cpu = torch.device("cpu")
    model = build_model(size.config(system), size.funnel.schema, cpu)
    batch = MultiTaskBatch(torch.zeros(rows, 0), torch.empty(0), torch.zeros(rows, size.num_tasks))  # type: ignore[arg-type]

    def embeddings(arch: FeatureArch, _: object, __: object) -> Tensor:
        return torch.zeros(rows, arch.out_features, requires_grad=True)

    with (
        patch.dict(os.environ, plain),  # kernels of our own count no FLOPs
        patch.object(FeatureArch, "forward", embeddings),
        FlopCounterMode(display=False) as counter,
    ):
        model(batch)[0].backward()
    dense = sum(p.numel() for p in model.parameters() if p.device == cpu)  # tables are on meta
    ids, labels = size.batch_size * size.num_fields, size.batch_size * size.num_tasks
    lookups = ids * sum(isinstance(module, FeatureArch) for module in model.modules())
    return Counted(counter.get_total_flops() * size.batch_size // rows, dense, ids, lookups, labels)


def measure(cases: Mapping[str, Case], device: torch.device, repeats: int) -> dict[str, parts.Measured]:
    """The cases' steps by turns, taken apart."""
    measured = {change: parts.Apart(case, device) for change, case in cases.items()}
    with clock.reader_seconds() as of_reader:
        for _ in range(2 + repeats):
            for apart in measured.values():
                apart.take()
    return {change: apart.since(2, of_reader) for change, apart in measured.items()}


def in_groups(measured: parts.Measured) -> dict[str, list[float]]:
    """Seconds of each group and of the whole step, a round each; the reader's are their median."""
    rounds = len(measured.parts[clock.REST])
    reader = [statistics.median(measured.parts[clock.READER])] * rounds
    by_part = {**measured.parts, clock.READER: reader}
    groups = {
        group: [sum(of_round) for of_round in zip(*(by_part[part] for part in members), strict=True)]
        for group, members in GROUPS.items()
    }
    return {**groups, STEP: measured.sums()}
