"""A run's rows: one a measurement."""

from dataclasses import asdict, replace
from typing import Any

from benchmarks import record
from benchmarks.embedding_throughput.grid import Point
from benchmarks.embedding_throughput.measure import (
    COPY,
    FORWARD,
    TRAINING,
    Job,
    pairs,
    peak_memory,
    throughput,
)
from benchmarks.embedding_throughput.ranks import in_ranks
from benchmarks.embedding_throughput.traffic import copied_bytes

Row = record.Row
THROUGHPUT, OF_COPY, RATIO, MEMORY = "throughput", "copy", "time of ours to DMP", "peak memory"


def about(point: Point, measured: str, device: str) -> Row:
    """What of a row says which measurement it is."""
    settings = asdict(point.workload)
    synthetic = point.workload.tables == "synthetic"
    for name in ("max_rows",) if synthetic else ("num_tables", "rows"):
        del settings[name]
    rows = point.workload.table_rows
    settings |= {"num_tables": len(rows), "table_rows": sum(rows)}
    return {"measured": measured, "axis": point.axis, "device": device, "ranks": point.ranks, **settings}


def throughput_rows(point: Point, job: Job, found: dict[str, Any]) -> list[Row]:
    """Of one point, from what its first rank returned."""
    num_ids = point.workload.batch_size * len(point.workload.table_rows) * point.workload.ids_a_bag
    copied = copied_bytes(job.copy_mib // point.ranks) * point.ranks
    rows = []
    for measured in found["measured"]:
        seconds, direction = measured["seconds"], measured["direction"]
        copy = seconds.pop(COPY)
        optimizer = measured["optimizer"] if direction == TRAINING else ""
        moved, what = found["bytes"][optimizer or FORWARD], {"direction": direction, "optimizer": optimizer}
        baseline = next(iter(seconds))
        for name, own in seconds.items():
            samples = record.spread([point.workload.batch_size / s for s in own], "samples/s", digits=0)
            per_sample = samples["median"] / point.workload.batch_size
            figures = {
                "ids_per_second": round(num_ids * per_sample),
                "table_gb_per_second": round(moved * per_sample / 1e9, 3),
                "percent_of_copy": round(100 * record.ratio([moved / s for s in own], [copied / s for s in copy]), 1),
                "baseline": baseline,
                "speed_to_baseline": round(record.ratio(seconds[baseline], own), 3),
            }
            rows.append({**about(point, THROUGHPUT, job.device), "candidate": name, **what, **figures, **samples})
        bandwidth = record.spread([copied / s / 1e9 for s in copy], "GB/s", digits=2)
        rows.append({**about(point, OF_COPY, job.device), "candidate": COPY, **what, **bandwidth})
    return rows


class Run:
    """Measures, and keeps the rows.

    Args:
        job: what all measurements have in common; workload and candidates are replaced.
        pair_runs: how often new processes are started for pairs.
        pairs_a_run: pairs of turns in each.
    """

    def __init__(self, job: Job, pair_runs: int, pairs_a_run: int) -> None:
        self.job, self.pair_runs, self.pairs_a_run = job, pair_runs, pairs_a_run
        self.rows: list[Row] = []

    def _job(self, point: Point, **changes: Any) -> Job:
        return replace(self.job, workload=point.workload, **{"candidates": point.candidates, **changes})

    def _in_ranks(self, function: Any, ranks: int, *arguments: object) -> Any:
        return in_ranks(function, ranks, self.job.device, *arguments)

    def throughput(self, point: Point) -> None:
        """Of all the point's candidates, forward and training."""
        job = self._job(point)
        rows = throughput_rows(point, job, self._in_ranks(throughput, point.ranks, job))
        print(f"{point.axis}, {point.ranks} ranks, {point.workload}: {len(rows)} rows", flush=True)
        self.rows += rows

    def pairs(self, point: Point, ranks: int, bare: str, ours: str, optimizer: str) -> None:
        """Ours to bare."""
        point = replace(point, ranks=ranks, axis="ours to DMP")
        job = self._job(point, candidates=(bare, ours), optimizers=(optimizer,))
        ratios = [
            of_ours / of_bare
            for run in range(self.pair_runs)
            for of_bare, of_ours in self._in_ranks(pairs, ranks, job, self.pairs_a_run, run % 2 == 1)
        ]
        what = {"candidate": ours, "baseline": bare, "direction": TRAINING, "optimizer": optimizer}
        self.rows.append({**about(point, RATIO, job.device), **what, **record.spread(ratios, "ratio", digits=4)})

    def peak_memory(self, point: Point, candidate: str) -> None:
        """Of training one candidate with the first optimizer."""
        optimizer = self.job.optimizers[0]
        job = self._job(point, candidates=(candidate,), optimizers=(optimizer,))
        peak = self._in_ranks(peak_memory, point.ranks, job)
        what = {"candidate": candidate, "direction": TRAINING, "optimizer": optimizer}
        self.rows.append({**about(point, MEMORY, job.device), **what, **record.spread([peak], "MiB", digits=0)})
