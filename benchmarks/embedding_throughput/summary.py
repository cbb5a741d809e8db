"""What is printed at the end: the figures that a choice hangs on."""

from collections.abc import Sequence

from benchmarks.embedding_throughput import naming
from benchmarks.record import Row

GOAL = 0.02  # ours is to take as long as TorchRec alone, give or take


def _throughputs(rows: Sequence[Row], **wanted: object) -> list[Row]:
    return [r for r in rows if r["measured"] == "throughput" and all(r[key] == v for key, v in wanted.items())]


def line(row: Row) -> str:
    """One measurement of throughput."""
    width = f"D {row['embedding_dim']}, B {row['batch_size']}, L {row['ids_a_bag']}, Zipf {row['exponent']:g}"
    what = f"{row['tables']}, {width}, {row['precision']}, {row['ranks']} rank{'s' * (row['ranks'] > 1)}"
    direction = row["optimizer"] or row["direction"]
    return (
        f"{what:60} {row['candidate']:24} {direction:16} {row['median']:12,.0f} samples/s "
        f"{row['table_gb_per_second']:8.2f} GB/s {row['percent_of_copy']:6.1f} % of copy "
        f"{row['speed_to_baseline']:6.2f} x {row['baseline']}"
    )


def against_stacked(rows: Sequence[Row]) -> list[str]:
    """Where TorchRec's fastest way falls short of tables stacked and updated by hand, if it does."""
    told = []
    for optimizer in dict.fromkeys(row["optimizer"] for row in rows if row["measured"] == "throughput"):
        by_hand = _throughputs(rows, candidate=naming.STACKED, optimizer=optimizer)
        shares = [1 / row["speed_to_baseline"] for row in by_hand if row["baseline"] == naming.TBE]
        if shares:
            reached = f"{100 * min(shares):.0f} to {100 * max(shares):.0f} %"
            told.append(f"{optimizer or 'forward'}: TBE reaches {reached} of the speed of one stacked table by hand.")
    return told


def fastest(rows: Sequence[Row]) -> list[str]:
    """Of TorchRec's and PyTorch's own at the base, for each direction and number of ranks."""
    told = []
    usual = [row for row in _throughputs(rows) if row["axis"] in ("base", "sharding", "asked for")]
    usual = [row for row in usual if row["candidate"] != naming.STACKED and not row["candidate"].startswith("ours")]
    for ranks, direction, optimizer in dict.fromkeys((r["ranks"], r["direction"], r["optimizer"]) for r in usual):
        alike = [r for r in usual if (r["ranks"], r["direction"], r["optimizer"]) == (ranks, direction, optimizer)]
        best = max(alike, key=lambda row: row["median"])
        speed = f"{best['median']:,.0f} samples/s, {best['percent_of_copy']} % of copy"
        told.append(f"fastest, {ranks} rank{'s' * (ranks > 1)}, {optimizer or direction}: {best['candidate']}, {speed}")
    return told


def summary(rows: Sequence[Row]) -> str:
    """A line a measurement of throughput, then what to choose by."""
    lines = [line(row) for row in _throughputs(rows)]
    for row in rows:
        if row["measured"] == "peak memory":
            lines.append(f"peak memory: {row['candidate']:24} {row['optimizer']:16} {row['median']:8.0f} MiB")
        if row["measured"] == "time of ours to DMP":
            spread = f"{row['median']:.3f} (p20 {row['p20']:.3f}, p80 {row['p80']:.3f})"
            verdict = "reached" if row["median"] <= 1 + GOAL else "missed"
            told = f"time of ours to DMP, {row['ranks']} ranks, {row['optimizer']}: {spread}"
            lines.append(f"{told}; at most {GOAL:.0%} slower: {verdict}")
    return "\n".join(lines + fastest(rows) + against_stacked(rows))
