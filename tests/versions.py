"""Runs tests with the versions of PyTorch, TorchRec and Python that the package supports: ``make versions``.

Each pair of a triple and a Python gets an environment of its own, which is deleted afterwards. One test of eight is
run, spread over all, and other ones with each Python; with ``--every 1``, all. With ``--quick``, those that take longer
than a few seconds, of packages and jobs, are left out. The outcomes go to ``docs/versions.csv``, and from there into
the table of ``docs/compatibility.md``, where a pair not run says so. A pair takes a quarter of an hour, and up to 6 GB
while it runs if PyTorch's index, which has the CPU builds, cannot be reached.
"""

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILE = ROOT / "docs" / "versions.csv"
PAGE = ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- versions, by tests/versions.py -->\n", "\n<!-- end of versions -->"
_STACK = ("torch", "torchrec", "fbgemm_gpu_cpu", "triton", "python", "numpy")
COLUMNS = (*_STACK, "tests", "every", "passed", "failed", "date")
NOT_COPIED = (".git", ".venv", ".*_cache", "__pycache__", "build", "dist", "runs", "*.egg-info")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
PINNED = ("2.13.0", "3.11")  # what `make test` runs whole


@dataclass(frozen=True)
class Triple:
    """Releases that go together, the last of each minor version; the Triton that this PyTorch brings, and its NumPy."""

    torch: str
    torchrec: str
    fbgemm: str
    triton: str
    numpy: str = "numpy"


TRIPLES = (
    Triple("2.11.0", "1.6.1", "1.6.0", "3.6.0", "numpy<2.4"),  # Triton's interpreter, on a CPU, fails with a later one
    Triple("2.12.1", "1.7.0", "1.7.0", "3.7.1"),
    Triple("2.13.0", "1.8.0", "1.8.0", "3.7.1"),
    Triple("2.14.1", "1.9.2", "1.9.0", "3.8.0"),
)


def run(triple: Triple, python: str, tests: str, every: int, folder: Path) -> dict[str, object]:
    """What the tests gave, as a row of the CSV; their output goes to a log in ``folder``."""
    place = folder / f"{triple.torch}-{python}"
    subprocess.run([f"python{python}", "-m", "venv", "--clear", place / "env"], check=True)
    binaries = place / "env" / "bin"
    index = os.environ.get("TORCH_CPU_INDEX", "https://download.pytorch.org/whl/cpu")
    pip = (binaries / "python", "-m", "pip", "install", "-q", "--retries", "2")
    extras = "data,report,launch,serve,test"
    shutil.copytree(ROOT, place / "source", ignore=shutil.ignore_patterns(*NOT_COPIED))
    try:
        first = ("-U", "--no-deps", "--extra-index-url", index, "pip", "setuptools<82", f"torch=={triple.torch}")
        subprocess.run([*pip, *first], check=True)  # as the Makefile does; torch 2.11 asks for setuptools<82
        packages = [
            f"torchrec=={triple.torchrec}",
            f"fbgemm-gpu-cpu=={triple.fbgemm}",
            f"triton=={triple.triton}",
            triple.numpy,
        ]
        ours = ["./requirements/shim/fbgemm-gpu", f".[{extras}]"]
        subprocess.run([*pip, "--no-build-isolation", *packages, *ours], cwd=place / "source", check=True)
        subprocess.run([binaries / "python", "-m", "pip", "check"], check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(place / "source" / "build")  # setuptools' copy of the package
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}"}
        subprocess.run(
            [binaries / "python", "-m", "torchrec_mtl.ops.build"], cwd=place / "source", env=environment, check=True
        )
        marks = "not gpu and not verify" + (" and not slow" if tests == "quick" else "")
        part = ("--every", str(every), "--part", str(PYTHONS.index(python)))  # each Python runs others
        command = [binaries / "python", "-m", "pytest", "-q", "-rf", "-m", marks, *part]
        log = folder / f"{triple.torch}-{python}.log"
        with log.open("w") as output:
            subprocess.run(command, cwd=place / "source", env=environment, check=False, stdout=output, stderr=output)
        numpy = subprocess.check_output(
            [binaries / "python", "-c", "import numpy; print(numpy.__version__)"], text=True
        )
    finally:
        shutil.rmtree(place)
    last = log.read_text().splitlines()[-1]
    passed, failed = (sum(map(int, re.findall(rf"(\d+) {kind}", last))) for kind in ("passed", "(?:failed|error)"))
    if not passed:
        raise SystemExit(f"error: no test of {triple} on Python {python} passed, see {log}: {last}")
    values = (triple.torch, triple.torchrec, triple.fbgemm, triple.triton, python, numpy.strip())
    return dict(zip(COLUMNS, (*values, tests, every, passed, failed, date.today()), strict=True))


def recorded() -> dict[tuple[str, str], dict[str, object]]:
    """The rows of the CSV, by PyTorch and Python."""
    rows = csv.DictReader(FILE.read_text().splitlines()) if FILE.exists() else []
    return {(row["torch"], row["python"]): dict(row) for row in rows}


def record(row: dict[str, object]) -> None:
    """Puts a row into the CSV, and the CSV into the page."""
    rows = {**recorded(), (row["torch"], row["python"]): row}
    with FILE.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[key] for key in sorted(rows))
    page = PAGE.read_text(encoding="utf-8")
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}{table()}{END}{after}", encoding="utf-8")


def table() -> str:
    """The table of the page, in Markdown."""
    rows = recorded()
    lines = [
        "| torch | torchrec | fbgemm-gpu, fbgemm-gpu-cpu | triton | "
        + " | ".join(f"Python {p}" for p in PYTHONS)
        + " |",
        "|---" * (4 + len(PYTHONS)) + "|",
    ]
    for triple in TRIPLES:
        cells = [triple.torch, triple.torchrec, triple.fbgemm, triple.triton]
        for python in PYTHONS:
            row = rows.get((triple.torch, python))
            unrecorded = "every change" if (triple.torch, python) == PINNED else "not run"
            cells.append(_cell(row) if row else unrecorded)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: dict[str, object]) -> str:
    quick = "quick " if row["tests"] == "quick" else ""
    failed = f", **{row['failed']} failed**" if int(str(row["failed"])) else ""
    return f"{int(str(row['passed'])):,} {quick}passed{failed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", nargs="*", default=[triple.torch for triple in TRIPLES], metavar="VERSION")
    parser.add_argument("--python", nargs="*", default=PYTHONS, metavar="VERSION", help="found as pythonVERSION")
    parser.add_argument("--every", type=int, default=8, metavar="N", help="run one test of N (8)")
    parser.add_argument("--quick", action="store_true", help="leave out tests that take longer than a few seconds")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="versions-"))
    for triple in TRIPLES:
        for python in PYTHONS:
            if triple.torch not in args.torch or python not in args.python:
                continue
            if subprocess.run([f"python{python}", "-V"], check=False, capture_output=True).returncode:
                sys.exit(f"error: there is no python{python} on the PATH")
            row = run(triple, python, "quick" if args.quick else "all", args.every, folder)
            record(row)
            print(f"torch {triple.torch}, Python {python}: {_cell(row)}; {folder / f'{triple.torch}-{python}.log'}")


if __name__ == "__main__":
    main()
