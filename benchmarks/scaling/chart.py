"""Draws ``docs/scaling.png`` from ``benchmarks/results/scaling_on_paper.csv``."""

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.record import RESULTS

CHART = Path(__file__).parents[2] / "docs" / "scaling.png"
LEFT_OUT = "row-wise"  # fifty times the others
TERMS = {
    "lookup_ms": ("lookup", "#4c78a8"),
    "all_to_all_ms": ("exchange of embeddings", "#f58518"),
    "dense_ms": ("matrix products", "#54a24b"),
    "all_reduce_ms": ("all-reduce beyond the backward pass", "#b279a2"),
    "agreement_ms": ("agreement of the ranks", "#9d9d9d"),
}


def main() -> None:
    with (RESULTS / "scaling_on_paper.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["choice"] != LEFT_OUT][::-1]
    fig, ax = plt.subplots(figsize=(9, 0.34 * len(rows) + 1.2))
    for y, row in enumerate(rows):
        left = 0.0
        for term, (_, colour) in TERMS.items():
            width = float(row[term] or 0)
            ax.barh(y, width, left=left, color=colour)
            left += width
        text = f"{left:.1f} ms" if left else "does not fit"
        ax.text(left + 0.3, y, text, va="center", fontsize=8)
    names = [f"{row['choice']}, batch {row['batch_size']}: {row['gpus']} GPUs" for row in rows]
    ax.set_yticks(range(len(rows)), names, fontsize=8)
    ax.set_xlabel("ms a step, computed")
    ax.spines[["top", "right"]].set_visible(False)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for _, colour in TERMS.values()]
    below = {"loc": "upper right", "bbox_to_anchor": (1, -0.08), "ncol": 3}
    ax.legend(handles, [name for name, _ in TERMS.values()], fontsize=8, frameon=False, **below)
    fig.savefig(CHART, dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
