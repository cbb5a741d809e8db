"""Loads the service of examples/service: ``python -m benchmarks.service``. A minute, and as long to make its packages.

Locust sends raw rows of a shop's log as fast as they are answered, by 1, 16 and 64 users of one row and by 16 of 100
rows, a quarter of ``--seconds`` each; in the middle of each quarter another package takes the place of the one that is
served. Every answer is compared with what its package says of the row alone; an answer that differs, is missing, or is
no 200 counts as lost, and so does a request that the service and Locust do not both count. Locust has one core and the
service the other, with one thread. ``--seconds 1800`` is half an hour.
"""

import argparse
import contextlib
import csv
import io
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
import venv
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from benchmarks import record
from examples.shop_log import COLUMNS
from examples.shop_log import rows as log_rows
from tests.service import Service
from torchrec_mtl.__main__ import main as torchrec_mtl
from torchrec_mtl.files import digest
from torchrec_mtl.inference.package import Package, load_package
from torchrec_mtl.inference.package.load import Arguments
from torchrec_mtl.inference.package.manifest import GOLDEN_FILE, MANIFEST_FILE, Manifest, rows_file
from torchrec_mtl.jobs.environment import HUGE_PAGES, KEEP_FREED_MEMORY

WAYS = ((1, 1), (16, 1), (64, 1), (16, 100))  # users, rows of a request
SECONDS, QUICK_SECONDS, NUM_REQUESTS = 60, 8, 200
PAGE = record.ROOT / "docs" / "a_service.md"
LOCUST, LOCUST_VERSION = Path(__file__).with_name("locustfile.py"), "locust==2.47.0"


def python_with_locust() -> Path:
    """The interpreter of an environment with Locust, built once: it needs an urllib3 that TorchX forbids."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchrec_mtl"
    folder = cache / LOCUST_VERSION.replace("==", "-")
    if not (folder / "installed").exists():  # written last: an interrupted install starts again
        venv.create(folder, clear=True, with_pip=True)
        command = [folder / "bin" / "python", "-m", "pip", "install", "-q", "--retries", "2", LOCUST_VERSION]
        subprocess.run(command, check=True)
        (folder / "installed").touch()
    return folder / "bin" / "python"


def make_packages(folder: Path) -> tuple[Path, Path]:
    """Trains on the log as docs/a_service.md declares it, and exports; the second package has other rows of tables."""
    declaration = PAGE.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    (folder / "shop.py").write_text(declaration.replace('"shop.csv"', repr(str(folder / "shop.csv"))))
    with (folder / "shop.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *log_rows()])
    first, second, shop = folder / "first", folder / "second", ["--dataset", str(folder / "shop.py")]
    options = ["--models", "shared_bottom", "--output", str(folder), "--name", "run", "training.max_epochs=1"]
    with contextlib.redirect_stdout(io.StringIO()), mock.patch.dict(os.environ, XDG_CACHE_HOME=str(folder / "cache")):
        torchrec_mtl(["train", *shop, *options])
        torchrec_mtl(["export", str(folder / "run"), *shop, "--output", str(first), "--table-type", "fp32"])
    shutil.copytree(first, second)
    rows = np.load(first / rows_file(0)).view(np.float32)
    np.save(second / rows_file(0), (-rows).view(np.uint8))
    manifest = Manifest.load(first)
    golden = dict(np.load(first / GOLDEN_FILE))
    given = Arguments(**{name: torch.from_numpy(each) for name, each in golden.items() if name != "scores"})
    np.savez(second / GOLDEN_FILE, **{**golden, "scores": Package(second, manifest).run(given).numpy()})
    manifest.save(second)
    return first, second


def write_requests(folder: Path, packages: tuple[Path, Path], rows_of_request: int) -> Path:
    """Writes requests, and the probabilities that each package says of their rows one by one."""
    numbers = {"price", "ctr_7d"}
    rows = []
    for values in log_rows()[-NUM_REQUESTS:]:
        row = dict(zip(COLUMNS, values, strict=True))
        used = {name: row[name] for name in ("user", "item", "device", "price", "ctr_7d")}
        used = {
            name: (float(value) if name in numbers else value) if value != "" else None for name, value in used.items()
        }
        rows.append({**used, "recent": [each["item"] for each in rows[-3:]]})
    draw = np.random.default_rng(0)
    requests = [draw.integers(0, len(rows), rows_of_request).tolist() for _ in range(NUM_REQUESTS)]
    expected = {}
    for package in packages:
        said = np.concatenate([load_package(package).predict([row]).marginal for row in rows])
        expected[digest(package / MANIFEST_FILE)[:12]] = [said[request].ravel().tolist() for request in requests]
    file = folder / f"requests_{rows_of_request}.json"
    file.write_text(json.dumps({"requests": [[rows[n] for n in of] for of in requests], "expected": expected}))
    return file


def load(service: Service, users: int, seconds: float, requests: Path, exchange: Callable[[], None]) -> record.Row:
    """Runs Locust, and puts another package in place halfway; returns what was counted."""
    before, memory, folder = service.metrics(), [], requests.parent
    options = f"--headless --users {users} --spawn-rate {users} --run-time {seconds:.0f}s --stop-timeout 30"
    options += f" --loglevel ERROR --host http://127.0.0.1:{service.port} --json-file {folder / 'said'} -f {LOCUST}"
    timer = threading.Timer(seconds / 2, exchange)
    timer.start()
    environment = {**os.environ, "SERVICE_REQUESTS": str(requests)}
    process = subprocess.Popen([python_with_locust(), "-m", "locust", *options.split()], env=environment)
    while process.poll() is None:
        memory.append(service.metrics()["process_resident_memory_bytes"] / 2**20)
        time.sleep(1)
    timer.join()
    (said,) = json.loads((folder / "said.json").read_text())
    return figures(said, before, service.metrics(), memory)


def figures(said: record.Row, before: record.Row, after: record.Row, memory: list[float]) -> record.Row:
    """What Locust has ``said``, and what the service counted; memory in MiB, once a second."""
    times = np.repeat([float(ms) for ms in said["response_times"]], [*said["response_times"].values()])
    new = {name: value - before.get(name, 0) for name, value in after.items()}
    sent, quarter = said["num_requests"], len(memory) // 4 + 1
    counted = int(new['service_requests_total{path="/predict",status="200"}'])
    return {
        "requests/s": sent / (said["last_request_timestamp"] - said["start_time"]),
        "p50": float(np.quantile(times, 0.5)),
        "p99": float(np.quantile(times, 0.99)),
        "requests": sent,
        "lost": said["num_failures"] + abs(sent - counted),
        "packages taken": new["service_packages_taken"],
        "rows scored at once": new["service_batch_rows_sum"] / new["service_batch_rows_count"],
        "memory, first quarter": max(memory[:quarter]),
        "memory, last quarter": max(memory[-quarter:]),
    }


UNITS = {"p50": "ms", "p99": "ms", "memory, first quarter": "MiB", "memory, last quarter": "MiB"}


def main() -> None:
    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--seconds", type=float, help=f"of load, in all ({SECONDS})")

    arguments = record.parse("service", __doc__, options)
    seconds = (arguments.seconds or (QUICK_SECONDS if arguments.quick else SECONDS)) / len(WAYS)
    with record.Results(arguments.results) as results, contextlib.ExitStack() as stack:
        for name in (*KEEP_FREED_MEMORY, *HUGE_PAGES):
            os.environ.pop(name)  # the service is to have the allocator that it has elsewhere
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        packages = make_packages(folder)
        current, turn = folder / "current", iter([*packages * len(WAYS)])

        def exchange() -> None:
            (folder / "other").symlink_to(next(turn))
            (folder / "other").replace(current)

        exchange()
        service = Service(current, folder / "service.log")
        stack.callback(service.stop)
        for users, rows in WAYS:
            found = load(service, users, seconds, write_requests(folder, packages, rows), exchange)
            about = {"users": users, "rows": rows, "seconds": seconds}
            for figure, value in found.items():
                results.add({**about, "figure": figure, **record.spread([value], UNITS.get(figure, ""))})
            print(about, {figure: round(value, 2) for figure, value in found.items()}, flush=True)
            if found["lost"]:
                raise SystemExit(f"error: {found['lost']} requests were lost")


if __name__ == "__main__":
    main()
