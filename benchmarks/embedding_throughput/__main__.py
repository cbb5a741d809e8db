"""How fast are tables looked up and updated, and what share of the memory's bandwidth is that?

    python -m benchmarks.embedding_throughput                  # a quarter of an hour on two quiet cores, under 10 GiB
    python -m benchmarks.embedding_throughput --embedding-dim 16 64 --exponent 0 1.2 --ranks 1 2

docs/embedding_throughput.md describes the candidates. Before anything is timed, each must pool the same embeddings and,
after three updates, have the same tables as float64 arithmetic, or the program stops with status 2.
A row of the results measures one of:

- throughput of the forward pass, or of training: forward, backward, update. GB of tables a second counts what a batch
  must move, see `table_bytes`. Percent of copy is relative to the bytes that a copy of `--copy-mib` MiB on all ranks
  reads and writes, in the same turns; it exceeds 100 where frequent rows stay in the cache. Speed to baseline: how many
  times as fast as the baseline, median over turns.
- copy: that copy.
- time of ours to DMP: ratio of the times of a training step under the same plan, for each pair of turns.
- peak memory of a process that only trains one candidate, libraries included; on a GPU, of its memory.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields, replace
from itertools import product
from typing import Any

import torch

from benchmarks import record
from benchmarks.embedding_throughput.candidates import CANDIDATES, runs
from benchmarks.embedding_throughput.measure import Job, check, in_ranks, peak_memory, throughput
from benchmarks.embedding_throughput.workload import OFTEN, STATES, Workload
from torchrec_mtl.errors import InputError
from torchrec_mtl.training.config import SHARDINGS

DMP, OURS = "DMP table_wise", "ours table_wise"
BARE = tuple(f"DMP {kind}" for kind in SHARDINGS[2:])
REPLICATED = ("DMP data_parallel", "ours data_parallel")  # on small tables: each step exchanges all rows
ONE_RANK = ("TBE", "our kernels", "nn.EmbeddingBag", "stacked by hand", "EBC", "TBE cached UVM", DMP)
ONE_RANK += (f"{DMP} cached UVM", OURS, "quantised TBE", "quantised EBC")
AXES: dict[str, tuple[str, Sequence[Any]]] = {  # name in the results; field of `Workload`, values
    "tables": ("tables", ["ali_ccp", "synthetic"]),
    "width": ("embedding_dim", [16, 32, 128]),
    "batch": ("batch_size", [1024, 65536]),
    "ids a bag": ("ids_a_bag", [10]),
    "ids": ("exponent", [0.0]),
    "precision": ("precision", ["fp16", "int8"]),
}
ROWS, LARGE = "rows", {"tables": "synthetic", "num_tables": 1, "embedding_dim": 16}  # of one table, with Adam
QUICK = Job(Workload("criteo", 1000, 26, 1000, 16, 128, 2), repeats=2, ids_a_turn=1, copy_mib=16)
PRINTED = ("axis", "tables", "embedding_dim", "batch_size", "ids_a_bag", "exponent", "precision", "ranks", "candidate")
PRINTED += ("direction", "optimizer", "median", "unit", "percent_of_copy", "speed_to_baseline")


def options(parser: argparse.ArgumentParser) -> None:
    """Given candidates or values of an axis, all combinations are measured, but neither memory nor ours to DMP."""
    for axis in fields(Workload):
        parser.add_argument(f"--{axis.name.replace('_', '-')}", type=axis.type, nargs="+", help=f"{axis.default}")
    parser.add_argument("--ranks", type=int, nargs="+", help="processes; 1 2 4, at most as many as there are GPUs")
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, metavar="NAME", help=", ".join(CANDIDATES))
    parser.add_argument("--optimizers", nargs="+", choices=STATES, default=list(STATES))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="threads of a rank")
    parser.add_argument("--copy-mib", type=int, help="should be many times the caches; 512, on CUDA 4096")
    parser.add_argument("--pair-runs", type=int, help="runs with new processes for the time of ours to DMP; 6")


def jobs(base: Job, arguments: argparse.Namespace) -> Iterator[Job]:
    """What is timed in turns: candidates on a workload, with an optimizer. A wrong value is an `InputError`."""
    asked = {axis.name: values for axis in fields(Workload) if (values := getattr(arguments, axis.name))}
    points: list[tuple[str, int, Sequence[str], dict[str, Any]]] = [("base", 1, ONE_RANK, {})]
    if asked or arguments.candidates:
        usual = {ranks: ONE_RANK if ranks == 1 else (*BARE, *REPLICATED) for ranks in arguments.ranks}
        combinations = [dict(zip(asked, values, strict=True)) for values in product(*asked.values())]
        points = [("asked for", n, arguments.candidates or usual[n], one) for one in combinations for n in usual]
    elif arguments.quick:
        points.append(("precision", 1, ONE_RANK, {"precision": "int8"}))
        points += [("sharding", ranks, (*BARE[:2], *REPLICATED), {}) for ranks in arguments.ranks]
        points.append((ROWS, 1, (OURS,), {**LARGE, "rows": 10_000}))
    else:
        points += [(axis, 1, ONE_RANK, {field: value}) for axis, (field, values) in AXES.items() for value in values]
        for ranks in arguments.ranks:
            points.append(("sharding", ranks, (*BARE, OURS), {}))
            points.append(("sharding of small tables", ranks, (DMP, *REPLICATED), {"max_rows": 10_000}))
        points += [(ROWS, 1, (OURS,), {**LARGE, "rows": rows}) for rows in (100_000, 10_000_000)]
    for (axis, ranks, names, changes), optimizer in product(points, ("", *arguments.optimizers)):
        if optimizer not in ({"base": ("", *STATES), "asked for": ("", *STATES), ROWS: ("Adam",)}.get(axis, OFTEN)):
            continue
        workload = replace(base.workload, **changes)
        if workload.batch_size % ranks:
            raise InputError(f"`batch_size` (={workload.batch_size}) must be a multiple of the ranks (={ranks})")
        able = tuple(name for name in names if runs(name, workload, ranks, base.device, optimizer))
        if able:
            yield replace(base, workload=workload, candidates=able, axis=axis, ranks=ranks, optimizer=optimizer)


def row(job: Job, measured: str, candidate: str, figures: record.Row) -> record.Row:
    """One measurement; ``figures`` is what `record.spread` gives, and whatever else is known."""
    settings = asdict(job.workload)
    for unused in ("max_rows",) if job.workload.tables == "synthetic" else ("num_tables", "rows"):
        del settings[unused]
    settings |= {"num_tables": len(job.workload.table_rows), "table_rows": sum(job.workload.table_rows)}
    about = {"measured": measured, "axis": job.axis, "device": job.device, "ranks": job.ranks, **settings}
    steps = {"direction": "training" if job.optimizer else "forward", "optimizer": job.optimizer}
    return {**about, "candidate": candidate, **steps, **figures}


def throughput_rows(job: Job, moved: float, seconds: dict[str, list[float]]) -> Iterator[record.Row]:
    """The rows of what `throughput` returns."""
    size, ids = job.workload.batch_size, job.workload.ids_a_bag * len(job.workload.table_rows)
    copied = 2 * (job.copy_mib // job.ranks) * job.ranks * 2**20  # read and written
    for name in job.candidates:
        samples = record.spread([size / s for s in seconds[name]], "samples/s", digits=0)
        figures = {
            "ids_per_second": round(samples["median"] * ids),
            "table_gb_per_second": round(samples["median"] / size * moved / 1e9, 3),
            "percent_of_copy": round(100 * moved / copied * record.ratio(seconds["copy"], seconds[name]), 1),
            "baseline": job.candidates[0],
            "speed_to_baseline": round(record.ratio(seconds[job.candidates[0]], seconds[name]), 3),
        }
        yield row(job, "throughput", name, {**figures, **samples})
    yield row(job, "copy", "copy", record.spread([copied / s / 1e9 for s in seconds["copy"]], "GB/s", digits=2))


def rows(asked: Sequence[Job], arguments: argparse.Namespace) -> Iterator[record.Row]:
    """Each row as soon as it is measured."""
    for job in asked:
        yield from throughput_rows(job, *in_ranks(throughput, job))
    base, quick = replace(asked[0], optimizer=arguments.optimizers[0]), arguments.quick
    if base.axis == "asked for":
        return
    compared = [optimizer for optimizer in arguments.optimizers if optimizer in OFTEN]
    pairs = list(product([ranks for ranks in arguments.ranks if ranks <= 2], compared))
    for ranks, optimizer in pairs[:1] if quick else pairs:
        job, ratios = replace(base, axis="ours to DMP", ranks=ranks, optimizer=optimizer), []
        for number in range(arguments.pair_runs or (1 if quick else 6)):
            pair = (OURS, DMP) if number % 2 else (DMP, OURS)  # which is built and timed first
            _, seconds = in_ranks(throughput, replace(job, candidates=pair, repeats=2 if quick else 24))
            ratios += [ours / bare for ours, bare in zip(seconds[OURS], seconds[DMP], strict=True)]
        yield row(job, "time of ours to DMP", OURS, {"baseline": DMP, **record.spread(ratios, "ratio", digits=4)})
    able = [name for name in base.candidates if runs(name, base.workload, 1, base.device, base.optimizer)]
    for name in able[:1] if quick else able:
        peak = in_ranks(peak_memory, replace(base, candidates=(name,)))
        yield row(base, "peak memory", name, record.spread([peak], "MiB", digits=0))


def main() -> None:
    arguments = record.parse("embedding_throughput", __doc__, options)
    most, copy_mib = (torch.cuda.device_count(), 4096) if arguments.device == "cuda" else (4, 512)
    arguments.ranks = arguments.ranks or [n for n in ((2,) if arguments.quick else (1, 2, 4)) if n <= most]
    given = {k: v for k, v in vars(arguments).items() if v and k in ("repeats", "device", "threads", "copy_mib")}
    base = replace(QUICK if arguments.quick else Job(copy_mib=copy_mib), **given)
    with record.Results(arguments.results, arguments.threads, device=arguments.device) as results:
        try:
            asked = list(jobs(base, arguments))
            wrong = next(filter(None, (in_ranks(check, job) for job in asked)), "" if asked else "no candidate runs")
        except InputError as error:
            wrong = str(error)
        if wrong:
            print(f"error: {wrong}", file=sys.stderr)
            raise SystemExit(2)
        print(*PRINTED, sep=", ")
        for measured in rows(asked, arguments):
            results.add(measured)
            print(*(measured.get(name, "") for name in PRINTED), sep=", ", flush=True)
            if measured["unit"] == "ratio":
                print(f"ours at most 2 % slower than DMP: {'reached' if measured['median'] <= 1.02 else 'missed'}")


if __name__ == "__main__":
    main()
