"""What 8, 64 and 512 GPUs would do with a terabyte of tables: ``python -m benchmarks.scaling.on_paper``.

Nothing of this is run on a GPU: it is arithmetic on TorchRec's planner, which is asked as it is for training, on a
model without memory, and on the FLOPs of the model's dense part. Every assumption is an argument and is printed. Rows
go to ``benchmarks/results/scaling_on_paper.csv``. A few minutes on one core.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from benchmarks import record
from benchmarks.scaling.cluster import Cluster
from benchmarks.scaling.cost import Choice, plan, price
from benchmarks.scaling.workload import Workload

CHOICES = [
    Choice("row-wise", sharding=("row_wise",)),
    Choice("planner's choice"),
    Choice("planner's choice, caching", caching=True),
    Choice("shards of 32 columns", narrowest=32),
    Choice("32 columns, 16-bit exchange", narrowest=32, half_communication=True),
    Choice("32 columns, 16-bit exchange and tables", narrowest=32, half_communication=True, half_tables=True),
]


def rows_of(workload: Workload, clusters: Sequence[Cluster], choice: Choice) -> list[dict[str, Any]]:
    """A row for each cluster; its efficiency is that of a GPU beside one of the smallest cluster that fits."""
    rows: list[dict[str, Any]] = []
    smallest = None
    for cluster in clusters:
        row: dict[str, Any] = {"choice": choice.name, "gpus": cluster.num_gpus, "batch_size": workload.batch_size}
        planned = plan(workload, cluster, choice)
        if planned is None:
            rows.append({**row, "fits": False})
            continue
        cost = price(planned, workload, cluster)
        of_gpu = 1000 * workload.batch_size / cost.step
        smallest = smallest or of_gpu
        rows.append(
            {
                **row,
                "fits": True,
                "hbm_gb": cost.hbm_gb,
                "host_gb": cost.host_gb,
                **{f"{term.replace('-', '_')}_ms": value for term, value in cost.terms.items()},
                "step_ms": cost.step,
                "input_ms_ahead": cost.input,
                "all_reduce_ms_whole": cost.all_reduce,
                "samples_per_second": of_gpu * cluster.num_gpus,
                "efficiency": of_gpu / smallest,
                "binds": cost.binding,
                "shardings": "; ".join(f"{number} {kind}" for kind, number in cost.shardings.items()),
            }
        )
    return rows


def told(row: dict[str, Any]) -> str:
    """A line of the table."""
    start = f"{row['choice']:<40} {row['gpus']:>5} {row['batch_size']:>6} "
    if not row["fits"]:
        return f"{start} the tables do not fit"
    terms = ("lookup", "all_to_all", "dense", "all_reduce", "agreement")
    times = " ".join(f"{row[f'{term}_ms']:>9.2f}" for term in terms)
    rate, efficiency = row["samples_per_second"] / 1e6, 100 * row["efficiency"]
    return (
        f"{start} {row['hbm_gb']:>5.0f} {row['host_gb']:>5.0f} {times} {row['step_ms']:>8.2f} "
        f"{rate:>8.2f} {efficiency:>6.0f} % {row['binds']:<10} {row['shardings']}"
    )


def options(parser: argparse.ArgumentParser) -> None:
    """Those of the cluster and the workload, each with its default."""
    parser.add_argument("--gpus", type=int, nargs="+", default=None, help="default 8 64 512")
    for each in (*fields(Cluster), *fields(Workload)):
        if isinstance(each.default, int | float):
            name = f"--{each.name.replace('_', '-')}"
            parser.add_argument(name, type=type(each.default), default=each.default, help=f"default {each.default:g}")


def main() -> None:
    args = vars(record.parse("scaling_on_paper", __doc__, options))
    circumstances = record.begin()
    choices, sizes = (CHOICES[:2], [8]) if args["quick"] else (CHOICES, [8, 64, 512])
    cluster = Cluster(8, **{each.name: args[each.name] for each in fields(Cluster) if each.name in args})
    workload = Workload(**{each.name: args[each.name] for each in fields(Workload) if each.name in args})
    clusters = [replace(cluster, num_gpus=number) for number in sorted(args["gpus"] or sizes)]
    flops, parameters = workload.dense_cost()
    gigabytes = [rows * 4 * workload.embedding_dim / 1e9 for rows in workload.table_rows()]
    print(f"assumed: {asdict(workload)}\nassumed: {asdict(cluster)}")
    print(f"tables of {gigabytes[0]:.0f}, {gigabytes[1]:.0f}, ... {gigabytes[-1]:.1f} GB in fp32")
    print(f"dense part: {flops / 1e6:.0f} MFLOP a row and step, {parameters / 1e6:.1f} M parameters")
    print("GB and ms of the slowest GPU; nothing here was run on a GPU")
    print(
        f"{'':<40} {'GPUs':>5} {'batch':>6}  {'HBM':>5} {'host':>5} {'lookup':>9} {'exchange':>9} {'dense':>9} "
        f"{'reduce':>9} {'agree':>9} {'step':>8} {'M rows/s':>8} {'effic.':>8} {'binds':<10} tables"
    )
    about = {each.name: args[each.name] for each in (*fields(Cluster), *fields(Workload)) if each.name in args}
    rows = []
    for of_workload, choice in [(workload, each) for each in choices] + [
        (replace(workload, batch_size=4 * workload.batch_size), choices[-1])
    ]:
        for row in rows_of(of_workload, clusters, choice):
            rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
            rows.append({**about, **rounded})
            print(told(row), flush=True)
    record.write(args["results"], rows, circumstances)


if __name__ == "__main__":
    main()
