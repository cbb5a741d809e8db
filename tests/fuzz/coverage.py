"""Records the draws of every cell: ``python -m tests.fuzz.coverage`` writes ``coverage.csv``, with 100 draws for each.

``python -m tests.fuzz.coverage data losses`` records these again and keeps the others.
"""

import csv
import sys
from collections import Counter
from pathlib import Path

from tests.fuzz.cases import CASES
from tests.fuzz.cell import draw, kinds_of

FILE = Path(__file__).with_name("coverage.csv")
COLUMNS = ("callable", "kind", "drawn", "worked", "refused")
DRAWS = 100


def recorded() -> list[dict[str, str]]:
    """The rows of ``coverage.csv``."""
    return list(csv.DictReader(FILE.read_text().splitlines())) if FILE.exists() else []


def main(names: list[str]) -> None:
    """Records the cells of the callables whose names begin with one of ``names``; of all, without names."""
    rows = {(row["callable"], row["kind"]): row for row in recorded() if row["callable"] in CASES}
    for name, case in CASES.items():
        if names and not any(name == each or name.startswith(f"{each}.") for each in names):
            continue
        for key in [key for key in rows if key[0] == name]:
            del rows[key]
        for kind in kinds_of(case):
            ended = Counter(draw(name, case, kind, seed) for seed in range(DRAWS))
            values = (name, kind, DRAWS, ended["worked"], ended["refused"])
            rows[name, kind] = {column: str(value) for column, value in zip(COLUMNS, values, strict=True)}
        _write(list(rows.values()))  # so that a stop loses one callable


def _write(rows: list[dict[str, str]]) -> None:
    order = {name: place for place, name in enumerate(CASES)}
    with FILE.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: order[row["callable"]]))


if __name__ == "__main__":
    main(sys.argv[1:])
