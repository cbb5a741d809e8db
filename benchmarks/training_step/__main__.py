"""What a training step costs, which part of it, and how it grows: ``python -m benchmarks.training_step``.

Four questions, on synthetic data (23 fields of 10,000 to 100,000 ids, a table of 16 each, stepped by fused row-wise
Adagrad; a funnel of three steps; batch 4,096; the models as in their papers) and one thread:

- parts: what does each model's step cost, and where? Processor time of its parts, beside steps without instruments.
- growth: by how much does it grow with batch, fields, tables' rows, tasks and TAFE's inducing points, one at a time,
  and by how much would it if each part grew as its count: FLOPs of the over-arch, ids looked up, parameters stepped?
- figure 8 of the TAFE paper: time of training and inference as ratios to Shared-Bottom, at the paper's batch of 1,024
  and sizes, but for its dimension of 18: tables with a fused optimizer need a multiple of four, here 20.
- overhead: by how much is our loop slower than bare TorchRec with the same modules put together by hand? At most 3 %.

Before anything is timed, the loss with instruments must be that without, to the last bit, and bare TorchRec's must be
ours. Rows go to ``benchmarks/results/training_step.csv``. Ten minutes on two cores. Not yet run on a GPU.
"""

import argparse
import gc
import statistics
from collections.abc import Iterator, Sequence

import torch

from benchmarks import record
from benchmarks.scaling import measure as scaling
from benchmarks.training_step import growth, parts
from benchmarks.training_step.case import SYSTEMS, Case, Size
from torchrec_mtl.jobs.compare import efficiency
from torchrec_mtl.training.distributed import process_group

GROWN = ("shared_bottom", "ple", "bpcm", "tafe")
BESIDE_TORCHREC = ("shared_bottom", "tafe")
GOAL = 3  # percent
QUICK = Size(batch_size=64, num_fields=5, fewest_rows=50, most_rows=100, num_inducing_points=8)
PAPER = {  # seconds of an epoch on Ali-CCP, and of the test split
    ("tafe", "train"): 1177 / 295,
    ("ple", "train"): 1195 / 295,
    ("tafe", "infer"): 47 / 35,
}


def rows_of_parts(systems: Sequence[str], size: Size, device: torch.device, repeats: int) -> Iterator[record.Row]:
    """A row a model and part; of the whole step, by how much its parts fall short of it."""
    for system in systems:
        plain, case = (Case(system, size, device) for _ in range(2))
        parts.check(plain, case, device)
        plain.close()
        measured, whole = parts.measure(case, device, repeats)
        about = {"question": "parts", "model": system}
        step = statistics.median(whole)
        for part, seconds in measured.parts.items():
            share = round(100 * statistics.median(seconds) / step, 1)
            yield {**about, "part": part, "percent_of_step": share, **record.spread([1e3 * s for s in seconds], "ms")}
        of_step = record.spread([1e3 * s for s in whole], "ms")
        gflop = round(growth.count(system, size).flops / 1e9, 2)
        residual = round(measured.residual(whole), 2)
        yield {**about, "part": growth.STEP, "residual_percent": residual, "over_arch_gflop": gflop, **of_step}
        case.close()


def rows_of_growth(systems: Sequence[str], base: Size, device: torch.device, repeats: int) -> Iterator[record.Row]:
    """A row a model, change and part: the base's time, and the ratio to it in the same round."""
    for system in systems:
        sizes = growth.changes(base, system)
        counted = {change: growth.count(system, size) for change, size in sizes.items()}
        cases = {change: Case(system, size, device) for change, size in sizes.items()}
        measured = {c: growth.in_groups(m) for c, m in growth.measure(cases, device, repeats).items()}
        for change in sizes:
            if change == growth.BASE:
                continue
            expected = counted[change].growth(counted[growth.BASE])
            for part, seconds in measured[change].items():
                of_base = measured[growth.BASE][part]
                ratios = [own / before for own, before in zip(seconds, of_base, strict=True)]
                yield {
                    "question": "growth",
                    "model": system,
                    "change": change,
                    "part": part,
                    "base_ms": round(1e3 * statistics.median(of_base), 3),
                    "changed_ms": round(1e3 * statistics.median(seconds), 3),
                    "counted_ratio": round(expected[part], 2) if part in expected else None,
                    **record.spread(ratios, "ratio to base", 2),
                }
        for case in cases.values():
            case.close()
        del cases, case
        gc.collect()  # the tables


def rows_of_figure_8(systems: Sequence[str], size: Size, device: torch.device, rounds: int) -> Iterator[record.Row]:
    """A row a model, for training and for inference."""
    configs = {system: size.config(system) for system in systems}
    timed = efficiency.time_in_turns(configs, size.split(), device, rounds, steps=2, warm_up=1)
    for system, model in timed.items():
        for name, part in (("train", "training"), ("infer", "inference")):
            published = PAPER.get((system, name))
            yield {
                "question": "figure 8",
                "model": system,
                "part": part,
                "paper_ratio": None if published is None else round(published, 2),
                "parameter_mb": round(model.megabytes, 2),
                **record.spread(efficiency.ratios(model, timed[efficiency.BASE], name), "ratio to Shared-Bottom", 2),
            }


def rows_of_overhead(size: Size, runs: int, pairs: int) -> Iterator[record.Row]:
    """See `benchmarks.scaling.measure`; one process."""
    num_rows = (size.fewest_rows + size.most_rows) // 2
    for system in BESIDE_TORCHREC:
        results = scaling.run(system, 1, size.batch_size, num_rows, runs, pairs, steps=1)
        for row in scaling.overheads(results):
            yield {"question": "overhead", "model": system, "part": row.pop("figure"), **row}


def told(rows: Sequence[record.Row]) -> Iterator[str]:
    """A line each of what a person may choose by."""
    for row in rows:
        named = f"{row['question']}, {row['model']}"
        figure = f"{row['median']} {row['unit']}"
        among = [
            r for r in rows if r is not row and all(r.get(k) == row.get(k) for k in ("question", "model", "change"))
        ]
        if "residual_percent" in row:
            largest = sorted(among, key=lambda r: -r["median"])[:3]
            shares = ", ".join(f"{r['part']} {r['percent_of_step']} %" for r in largest)
            yield f"{named}: {figure}, of which {shares}; parts fall short by {row['residual_percent']} %"
        elif row.get("part") == growth.STEP:
            largest = sorted(among, key=lambda r: r["base_ms"] - r["changed_ms"])[:2]
            grown = ", ".join(f"{r['part']} {r['median']} (by count {r['counted_ratio']})" for r in largest)
            yield f"{named}, {row['change']}: {figure}; most is added by {grown}"
        elif row["question"] == "figure 8":
            published = f", in the paper {row['paper_ratio']}" if row["paper_ratio"] else ""
            yield f"{named}: {row['part']} {figure}{published}"
        elif row["question"] == "overhead":
            yield f"{named}: {row['part']} {figure}"


def conclusions(rows: Sequence[record.Row]) -> Iterator[str]:
    """What all of it comes to."""
    steps = {row["model"]: row["median"] for row in rows if "residual_percent" in row}
    least, most = min(steps, key=steps.__getitem__), max(steps, key=steps.__getitem__)
    yield f"{least} has the cheapest step ({steps[least]} ms), {most} the dearest ({steps[most]} ms)."
    grown = [row for row in rows if row["question"] == "growth" and row["part"] == growth.STEP]
    worst = max(grown, key=lambda row: row["median"])
    yield f"What costs most to grow: {worst['change']} of {worst['model']}, {worst['median']} times the step."
    over = [row for row in rows if row["question"] == "overhead" and "processor" in row["part"]]
    figures = ", ".join(f"{row['median']} % ({row['model']})" for row in over)
    yield f"Our loop beside bare TorchRec, in processor time: {figures}; the goal is at most {GOAL} %."


def options(parser: argparse.ArgumentParser) -> None:
    """The program's own."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")


def main() -> None:
    args = record.parse("training_step", __doc__, options)
    circumstances = record.begin(device=args.device)
    device, quick = torch.device(args.device), args.quick
    size, systems, grown = (QUICK, BESIDE_TORCHREC, BESIDE_TORCHREC) if quick else (Size(), SYSTEMS, GROWN)
    repeats = args.repeats or (2 if quick else 7)
    of_figure = size if quick else Size(batch_size=1024, embedding_dim=20)
    rows: list[record.Row] = []

    def answer(found: Iterator[record.Row]) -> None:
        new = list(found)
        print("\n".join(told(new)), flush=True)
        rows.extend(new)

    with process_group(device):
        answer(rows_of_parts(systems, size, device, repeats))
        answer(rows_of_growth(grown, size, device, max(2, repeats - 2)))
        answer(rows_of_figure_8(systems, of_figure, device, repeats))
    answer(rows_of_overhead(size, runs=1 if quick else 3, pairs=2 if quick else 6))
    print("\n".join(conclusions(rows)), flush=True)
    record.write(args.results, rows, circumstances)


if __name__ == "__main__":
    main()
