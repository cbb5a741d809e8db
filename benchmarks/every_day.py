"""Measures ways to encode ids of which new ones come every day: ``python -m benchmarks.every_day``.

Ten synthetic days. Every day 5 % of the users and of the items leave and as many new ones come, the effects of items
walk at random, and prices rise. Each day is scored by the model of the day before, then trained on, as ``torchrec-mtl
train --days`` does: Shared-Bottom, one thread, several seeds of data and model. A row has a figure's mean and standard
deviation over seeds, for one way, task and day, or over all scored days. About five minutes.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks import record
from torchrec_mtl.data.table import AnyId, ByTime, Dense, Hashed, Table, Vocabulary
from torchrec_mtl.data.table.fields import IdField
from torchrec_mtl.jobs.daily.bounds import Bounds
from torchrec_mtl.jobs.daily.folder import DayReport, DaysFolder
from torchrec_mtl.jobs.daily.job import DailyRun
from torchrec_mtl.jobs.settings import Settings, make_config
from torchrec_mtl.metrics import METRICS
from torchrec_mtl.systems import SYSTEMS
from torchrec_mtl.tasks import TaskChain
from torchrec_mtl.training.config import ZchConfig

FIRST, DAYS, ROWS, SEEDS = date(2026, 11, 1), 10, 20_000, 3
QUICK_DAYS, QUICK_ROWS, QUICK_SEEDS = 2, 500, 1
IDS, NEW = {"user": 2000, "item": 1000}, 0.05  # ids of a day, and the share of new ones
FIGURES = ("auc", "normalized_entropy", "calibration")
SETTINGS = (
    "embedding_dim=8",
    "training.batch_size=256",
    "training.table.learning_rate=0.1",
    "training.optimizer.learning_rate=0.01",
)
BUCKETS = ZchConfig().buckets  # their number divides that of the rows of a table for ids without a vocabulary

Way = Callable[[str, int, int], IdField]  # of a field's name, its ids on the first day and on all days


def spare(name: str, first: int, whole: int) -> IdField:
    """A vocabulary that takes up new ids."""
    return Vocabulary(name, spare_rows=whole - first)


def any_id(name: str, first: int, whole: int) -> IdField:
    """Ids that get rows while the model trains."""
    return AnyId(name, num_rows=-(-whole // BUCKETS) * BUCKETS)


WAYS: dict[str, Way] = {
    "fixed vocabulary": lambda name, first, whole: Vocabulary(name),
    "growing vocabulary": spare,
    "hash, as many rows": lambda name, first, whole: Hashed(name, whole + 1),
    "hash, ten times the rows": lambda name, first, whole: Hashed(name, 10 * whole),
    "zch, as many rows": any_id,
}


def write_log(folder: Path, seed: int, num_days: int, num_rows: int) -> None:
    """Writes a parquet file for each day."""
    random = np.random.default_rng(seed)
    whole = {name: num_ids_of_all_days(number, num_days) for name, number in IDS.items()}
    effects = {name: random.normal(0, 1, (number, 6)) for name, number in whole.items()}
    popularity = {name: 1 / (10 + random.permutation(number)) for name, number in whole.items()}
    for day in range(num_days):
        ids = {name: _draw(random, popularity[name], day, IDS[name], num_rows) for name in IDS}
        effects["item"] += random.normal(0, 0.15, effects["item"].shape)
        user, item = (effects[name][ids[name]] for name in IDS)
        price = np.exp(random.normal(0.05 * day, 0.5, num_rows))
        taste = (user[:, 2:] * item[:, 2:]).sum(1) / 2
        click = _happens(random, -1.5 + 0.7 * user[:, 0] + 0.9 * item[:, 0] + 0.7 * taste - 0.3 * np.log(price))
        buy = click & _happens(random, -0.8 + 0.7 * user[:, 1] + 0.9 * item[:, 1])
        start = np.datetime64(FIRST + timedelta(days=day), "us")
        seconds = np.sort(random.integers(0, 86_400, num_rows)).astype("timedelta64[s]")
        columns = {"ts": start + seconds, "user": ids["user"], "item": ids["item"], "price": price}
        pl.DataFrame({**columns, "click": click, "buy": buy}).write_parquet(folder / f"day_{day:02}.parquet")


def num_ids_of_all_days(of_a_day: int, num_days: int) -> int:
    """Returns the number of ids that appear on any day."""
    return of_a_day + (num_days - 1) * round(of_a_day * NEW)


def _draw(
    random: np.random.Generator, popularity: NDArray[np.float64], day: int, number: int, num_rows: int
) -> NDArray[np.int64]:
    first = day * round(number * NEW)
    here = popularity[first : first + number]
    return first + random.choice(number, num_rows, p=here / here.sum())


def _happens(random: np.random.Generator, logits: NDArray[np.float64]) -> NDArray[np.bool_]:
    return random.random(len(logits)) < 1 / (1 + np.exp(-logits))


def measure(way: Way, log: Path, run: Path, seed: int, num_days: int) -> list[DayReport]:
    """Trains day after day and returns the reports of the days."""
    fields = [way(name, number, num_ids_of_all_days(number, num_days)) for name, number in IDS.items()]
    table = Table("drift", str(log), TaskChain(["click", "buy"]), [*fields, Dense("price")], time="ts", split=_UNUSED)
    config = make_config(SYSTEMS["shared_bottom"], Settings(), [*SETTINGS, f"training.seed={seed}"])
    days = [FIRST + timedelta(days=number) for number in range(num_days)]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        DailyRun(config, table, run, Bounds(), METRICS).run(days, [])
    return DaysFolder(run).reports()


_UNUSED = ByTime(str(FIRST), str(FIRST + timedelta(days=1)))  # a table needs it; days are not split by it


def figures(reports: Sequence[DayReport]) -> dict[tuple[str, str, str], float]:
    """Returns the figures by task, metric and day, and their means over the scored days, as day "all".

    The share of unknown ids is that of both fields together, as a figure of no task.
    """
    found: dict[tuple[str, str, str], float] = {}
    by_day = defaultdict(list)
    for report in reports[1:]:
        of_day = {
            (row["task"], row["metric"]): row["value"]
            for row in report.scored
            if row["space"] == "impressions" and row["metric"] in FIGURES
        }
        of_day["", "unknown ids"] = statistics.mean(report.fields[name].unknown for name in IDS)
        for (task, metric), value in of_day.items():
            found[task, metric, str(report.day)] = value
            by_day[task, metric].append(value)
    return found | {(*key, "all"): statistics.mean(values) for key, values in by_day.items()}


def rows_of(way: str, of_seeds: Sequence[dict[tuple[str, str, str], float]], about: record.Row) -> list[record.Row]:
    """Returns a row of results for each figure of a way."""
    rows = []
    for task, metric, day in of_seeds[0]:
        values = [found[task, metric, day] for found in of_seeds]
        deviation = statistics.stdev(values) if len(values) > 1 else 0.0
        mean = {"mean": round(statistics.mean(values), 5), "standard_deviation": round(deviation, 5)}
        named = {"way": way, "task": task, "figure": metric, "day": day}
        rows.append({**named, **about, **mean, **record.spread(values, "", 5)})
    return rows


def main() -> None:
    def options(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--seeds", type=int, help=f"number of seeds ({SEEDS})")

    arguments = record.parse("every_day", __doc__, options)
    num_days, num_rows = (QUICK_DAYS, QUICK_ROWS) if arguments.quick else (DAYS, ROWS)
    num_seeds = arguments.seeds or (QUICK_SEEDS if arguments.quick else SEEDS)
    with record.Results(arguments.results) as results:
        of_seeds = defaultdict(list)
        for seed in range(num_seeds):
            with tempfile.TemporaryDirectory() as folder:
                log = Path(folder, "log")
                log.mkdir()
                write_log(log, seed, num_days, num_rows)
                for number, (name, way) in enumerate(WAYS.items()):
                    of_seeds[name].append(figures(measure(way, log, Path(folder, f"run_{number}"), seed, num_days)))
            print(f"seed {seed} of {num_seeds} is done", flush=True)
        about = {"rows_a_day": num_rows, "new_ids": NEW}
        for name, found in of_seeds.items():
            results.add(*rows_of(name, found, about))
    print_means(results.rows)


def print_means(rows: Sequence[record.Row]) -> None:
    """Prints the means over the scored days, with their standard deviation over seeds."""
    for row in rows:
        if row["day"] == "all":
            value = f"{row['mean']:.4f} +- {row['standard_deviation']:.4f}"
            print(f"{row['way']:26} {row['task']:6} {row['figure']:20} {value}")


if __name__ == "__main__":
    main()
