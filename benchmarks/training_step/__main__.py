"""What a training step costs, which part of it, and how it grows: ``python -m benchmarks.training_step``.

Four questions, on synthetic data (23 fields of 10,000 to 100,000 ids, a table of 16 each, stepped by fused row-wise
Adagrad; a funnel of three steps; batch 4,096; the models as in their papers) and one thread:

- parts: what does each model's step cost, and where? Processor time of its parts, beside steps without instruments.
- growth: by how much does it grow with batch, fields, tables' rows, tasks and TAFE's inducing points, one at a time,
  and by how much would it if each part grew as its count: FLOPs of the over-arch, ids looked up, parameters stepped?
- figure 8 of the TAFE paper: time of training and inference as ratios to Shared-Bottom, at the paper's batch of 1,024
  and sizes, but with dimension 20 for its 18: tables with a fused optimizer need a multiple of four.
- overhead: by how much is our loop slower than bare TorchRec with the same modules put together by hand? The goal is
  at most 3 %. It is measured on a CPU, and left out with ``--device cuda``.

Nothing is timed unless instruments leave the loss as it is, to the last bit, and bare TorchRec's loss is ours. Ten
minutes on two cores. Not yet run on a GPU.
"""

import gc
import os
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import record, scaling
from benchmarks.stacks import library
from benchmarks.training_step import parts
from benchmarks.training_step.case import SYSTEMS, Size, begin
from torchrec_mtl.data import MultiTaskBatch
from torchrec_mtl.jobs.build import build_model
from torchrec_mtl.jobs.compare import efficiency
from torchrec_mtl.modules import FeatureArch
from torchrec_mtl.training.process_group import process_group

CPU = torch.device("cpu")
GROWN = ("shared_bottom", "ple", "bpcm", "tafe")
BESIDE_TORCHREC = ("shared_bottom", "tafe")
QUICK = Size(batch_size=64, num_fields=5, fewest_rows=50, most_rows=100, num_inducing_points=8)
CHANGES = {  # fields of `Size`, and how many times as large they become
    "batch x2": {"batch_size": 2},
    "fields x2": {"num_fields": 2},
    "rows of tables x10": {"fewest_rows": 10, "most_rows": 10},
    "tasks x2": {"num_tasks": 2},
    "inducing points x2": {"num_inducing_points": 2},
}
STEP, GROUPS = "whole step", ("reader", "transfer", "tables", "over-arch", "loss", "optimizer")
# Figure 8's seconds: of an epoch on Ali-CCP, and of its test split.
PAPER = {("tafe", "training"): 1177 / 295, ("ple", "training"): 1195 / 295, ("tafe", "inference"): 47 / 35}


def rows_of_parts(systems: Sequence[str], size: Size, device: torch.device, repeats: int) -> Iterator[record.Row]:
    """A row for each model and part; that of the whole step says by how much its parts fall short of it."""
    timer = partial(record.seconds, device="cuda") if device.type == "cuda" else record.processor_seconds
    for system in systems:
        plain, run = (begin(system, size, device) for _ in range(2))
        parts.check(plain, run, device)
        plain.close()
        apart = parts.Apart(run, device)
        candidates = {STEP: run.take_step, "its parts": apart.take}
        whole = record.in_turns(candidates, repeats, timer, warm_up=parts.WARM_UP)[STEP]
        about = {"question": "parts", "model": system}
        for part, seconds in apart.parts().items():
            share = round(100 * statistics.median(seconds) / statistics.median(whole), 1)
            yield {**about, "part": part, "percent_of_step": share, **record.spread([1e3 * s for s in seconds], "ms")}
        about |= {"part": STEP, "residual_percent": round(100 * (1 - record.ratio(apart.sums(), whole)), 2)}
        about["over_arch_gflop"] = round(count(system, size)["over-arch"] / 1e9, 2)
        yield {**about, **record.spread([1e3 * s for s in whole], "ms")}
        run.close()


def count(system: str, size: Size, rows: int = 8) -> dict[str, int]:
    """What the time of each of `GROUPS` would be proportional to.

    FLOPs are those of the equations, products with inducing points that are not selected among them; they are counted
    on ``rows`` rows, without tables.
    """
    plain = {"TORCHREC_MTL_ATTENTION": "reference", "TORCHREC_MTL_INDUCING_ATTENTION": "reference"}
    model = build_model(size.config(system), size.funnel.schema, CPU)
    batch = MultiTaskBatch(torch.zeros(rows, 0), torch.empty(0), torch.zeros(rows, size.num_tasks))  # type: ignore[arg-type]

    def embeddings(arch: FeatureArch, *_: object) -> Tensor:
        return torch.zeros(rows, arch.out_features, requires_grad=True)

    without_tables = patch.object(FeatureArch, "forward", embeddings)  # which are on meta
    with patch.dict(os.environ, plain), without_tables, FlopCounterMode(display=False) as counter:
        model(batch)[0].backward()
    flops = counter.get_total_flops() * size.batch_size // rows
    ids, labels = size.batch_size * size.num_fields, size.batch_size * size.num_tasks
    lookups = ids * sum(isinstance(module, FeatureArch) for module in model.modules())  # Single-Task has several
    parameters = sum(p.numel() for p in model.parameters() if p.device == CPU)
    return dict(zip(GROUPS, (ids + labels, ids + labels, lookups, flops, labels, parameters), strict=True))


def changes(base: Size, system: str) -> dict[str, Size]:
    """The base with each of `CHANGES` that the model knows."""
    known = {change: fields for change, fields in CHANGES.items() if system == "tafe" or "inducing" not in change}
    return {c: replace(base, **{name: n * getattr(base, name) for name, n in known[c].items()}) for c in known}


def in_groups(apart: parts.Apart) -> dict[str, list[float]]:
    """Seconds of each of `GROUPS`, forward and backward pass together, and of the whole step; the reader's median."""
    measured, step = apart.parts(), apart.sums()
    measured[parts.READER] = len(step) * [statistics.median(measured[parts.READER])]
    members = {group: [measured[part] for part in measured if part.partition(",")[0] == group] for group in GROUPS}
    return {**{group: [sum(x) for x in zip(*of, strict=True)] for group, of in members.items()}, STEP: step}


def rows_of_growth(systems: Sequence[str], base: Size, device: torch.device, repeats: int) -> Iterator[record.Row]:
    """A row for each model, change and part: the base's time, and the ratio to it in the same round."""
    for system in systems:
        sizes = {"base": base, **changes(base, system)}
        apart = {change: parts.Apart(begin(system, size, device), device) for change, size in sizes.items()}
        record.in_turns({change: each.take for change, each in apart.items()}, repeats, warm_up=parts.WARM_UP)
        measured = {change: in_groups(each) for change, each in apart.items()}
        for each in apart.values():
            each.run.close()
        del apart, each
        gc.collect()  # the tables
        before, counts = measured.pop("base"), count(system, base)
        for change, after in measured.items():
            expected = count(system, sizes[change])
            for part in before:
                about = {"question": "growth", "model": system, "change": change, "part": part}
                about["base_ms"] = round(1e3 * statistics.median(before[part]), 3)
                about["changed_ms"] = round(1e3 * statistics.median(after[part]), 3)
                about["counted_ratio"] = None if part == STEP else round(expected[part] / counts[part], 2)
                ratios = [a / b for a, b in zip(after[part], before[part], strict=True)]
                yield {**about, **record.spread(ratios, "ratio to base", 2)}


def rows_of_figure_8(systems: Sequence[str], size: Size, device: torch.device, rounds: int) -> Iterator[record.Row]:
    """A row for each model's training, and one for its inference."""
    configs = {system: size.config(system) for system in systems}
    timed = efficiency.time_in_turns(configs, size.split(), device, rounds, steps=2, warm_up=1)
    for system, model in timed.items():
        for name, part in (("train", "training"), ("infer", "inference")):
            about = {"question": "figure 8", "model": system, "part": part}
            about["paper_ratio"] = round(PAPER[system, part], 2) if (system, part) in PAPER else None
            about["parameter_mb"] = round(model.megabytes, 2)
            ratios = efficiency.ratios(model, timed[efficiency.BASE], name)
            yield {**about, **record.spread(ratios, "ratio to Shared-Bottom", 2)}


def rows_of_overhead(size: Size, runs: int, pairs: int) -> Iterator[record.Row]:
    """The rows of `benchmarks.scaling` on one process, for models whose steps are short and long."""
    num_rows = (size.fewest_rows + size.most_rows) // 2
    for system in BESIDE_TORCHREC:
        make = partial(library, system)
        for row in scaling.overheads(scaling.run(make, 1, size.batch_size, num_rows, runs, pairs, steps=1)):
            yield {"question": "overhead", "model": system, "part": row.pop("figure"), **row}


def main() -> None:
    args = record.parse(
        "training_step", __doc__, lambda parser: parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    )
    device, quick = torch.device(args.device), args.quick
    size, systems, grown = (QUICK, BESIDE_TORCHREC, BESIDE_TORCHREC) if quick else (Size(), SYSTEMS, GROWN)
    of_figure = size if quick else Size(batch_size=1024, embedding_dim=20)
    repeats = args.repeats or (2 if quick else 7)

    with record.Results(args.results, device=args.device) as results:

        def answer(rows: Iterator[record.Row]) -> None:
            for row in rows:
                results.add(row)
                named = ("question", "model", "change", "part", "median", "unit")
                print(*(row[name] for name in named if name in row), flush=True)

        with process_group(device):
            answer(rows_of_parts(systems, size, device, repeats))
            answer(rows_of_growth(grown, size, device, max(2, repeats - 2)))
            answer(rows_of_figure_8(systems, of_figure, device, repeats))
        if args.device == "cpu":
            answer(rows_of_overhead(size, runs=1 if quick else 3, pairs=2 if quick else 6))


if __name__ == "__main__":
    main()
