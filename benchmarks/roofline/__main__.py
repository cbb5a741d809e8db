"""The least time that TAFE's stack can take on an H200, from counts: ``python -m benchmarks.roofline``.

For each size of `benchmarks.gpu`, share of points selected and direction: what must be computed and moved (`algebra`),
how long an H200 takes for that at least (`h200`), and which of these bounds binds. For the kernels also how many
instructions their warps issue for a sample, read from their machine code; without a compiler, ``not_counted`` says so.
Beside it what `gpu.csv` measured, and how much longer that is.

It needs no GPU. It takes four minutes, or one if what it compiled is still there. ``--quick`` leaves instructions out.
"""

import csv
from collections.abc import Iterator
from itertools import product

from benchmarks import record
from benchmarks.attention import BOTH, SIZES, Size
from benchmarks.record import Row
from benchmarks.roofline import cuda_kernels, h200, triton_kernels
from benchmarks.roofline.algebra import flop_of_sample, rows_of_samples, work
from benchmarks.roofline.control_flow import Issued

SHARES = (0.25, 1.0)
CANDIDATES = ("eager", "sdpa", "triton", "cuda")
# How many times as fast as eager the kernels were to be, forward and backward.
GOALS = {"paper": {0.25: 10, 1.0: 8}, "mid": {0.25: 15, 1.0: 5}, "large": {0.25: 10, 1.0: 4}}

Measured = dict[tuple[str, float, str, str], float]


def measured() -> Measured:
    """Microseconds by size, share, direction and candidate, of a CUDA graph; those that ran without an error."""
    with (record.RESULTS / "gpu.csv").open(encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row["what"] == "stack" and row["mode"] == "graph"]
    return {
        (row["size"], float(row["share"]), row["direction"], row["candidate"]): float(row["median"])
        for row in rows
        if row["median"]
    }


def instructions(size: Size, share: float, direction: str, candidate: str) -> Issued | str | None:
    """What the kernels of a candidate issue for a sample, or why it was not counted; None if it has none of ours."""
    if candidate == "cuda":
        return cuda_kernels.why_not(size) or cuda_kernels.issued_for_sample(size, share, direction)
    if candidate == "triton":
        return triton_kernels.why_not() or triton_kernels.issued_for_sample(size, share, direction)
    return None


def of_algebra(size: Size, share: float, direction: str) -> tuple[Row, dict[str, float]]:
    """Columns of a row, and the bounds in microseconds."""
    of = work(size, share, direction)
    bounds = {name: 1e6 * seconds for name, seconds in h200.seconds(of, size.dtype).items()}
    projected = sum(
        p * flop_of_sample(size, r, direction, folded=False) for r, p in rows_of_samples(size, share).items()
    )
    counts = {"gflop": of.flop / 1e9, "gflop_keys_projected": size.B * projected / 1e9}
    counts |= {"million_exponentials": of.exponentials / 1e6, "mb": of.bytes / 1e6}
    counts |= {f"{name}_us": bound for name, bound in bounds.items()}
    binding = max(bounds, key=bounds.__getitem__)
    return {**_rounded(counts), "binds": binding, "bound_us": round(bounds[binding], 2)}, bounds


def _rounded(values: dict[str, float]) -> Row:
    return {name: round(value, 2) for name, value in values.items()}


def rows(counted: bool) -> Iterator[Row]:
    """A row for each size, share, direction and candidate that was measured; ``counted`` with instructions."""
    times = measured()
    for (name, size), share, direction in product(SIZES.items(), SHARES, ("forward", BOTH)):
        columns, bounds = of_algebra(size, share, direction)
        bound = max(bounds.values())
        goal = times[name, share, direction, "eager"] / GOALS[name][share] if direction == BOTH else None
        for candidate in CANDIDATES:
            if (name, share, direction, candidate) not in times:
                continue
            time = times[name, share, direction, candidate]
            row = {"size": name, **size._asdict(), "share": share, "direction": direction, "candidate": candidate}
            row |= {**columns, "measured_us": time, "measured_to_bound": round(time / bound, 2)}
            if goal:
                row |= _rounded({"goal_us": goal, "goal_to_bound": goal / bound})
            found = instructions(size, share, direction, candidate) if counted else None
            if isinstance(found, str):
                row["not_counted"] = found
            elif found:
                issue = 1e6 * size.B * found.instructions / h200.INSTRUCTIONS_A_SECOND
                of_kernel = max(bound, issue)
                row |= {"instructions": round(found.instructions), "matrix_instructions": round(found.matrix)}
                row |= _rounded({"issue_us": issue, "measured_to_issue": time / issue})
                row["binds_the_kernel"] = "issue" if issue > bound else columns["binds"]
                if goal:
                    row["goal_to_kernel"] = round(goal / of_kernel, 2)
            yield row


def main() -> None:
    arguments = record.parse("roofline", __doc__)
    with record.Results(arguments.results) as results:
        for row in rows(counted=not arguments.quick):
            results.add(row)
            print(*(f"{key}={value}" for key, value in row.items() if key not in Size._fields), flush=True)


if __name__ == "__main__":
    main()
