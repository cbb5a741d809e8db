"""What the service says of itself: metrics for Prometheus, and the drift of rows and scores from the reference."""

import threading
from collections.abc import Iterable
from typing import Any

import numpy as np
from batching import Scored
from exchange import Exchange, Served
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily

from torchrec_mtl.data.table.drift import FieldCounts, added, population_stability

WINDOW = 10_000  # rows: drift is that of the newest one to two windows
LEAST_ROWS = 1000  # fewer do not say how scores are distributed
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Counts:
    """Rows, values of fields, and bins of scores."""

    def __init__(self) -> None:
        self.num_rows, self.fields, self.scores = 0, dict[str, FieldCounts](), dict[str, Any]()

    def add(self, num_rows: int, fields: dict[str, FieldCounts], scores: dict[str, Any]) -> None:
        self.num_rows += num_rows
        self.fields = added(self.fields, fields)
        self.scores = {task: self.scores.get(task, 0) + bins for task, bins in scores.items()}


class Drift:
    """Compares the newest rows with the reference of the package that scored them; a new package starts anew."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # rows are added in the thread that scores
        self._of: Served | None = None
        self._old, self._new = Counts(), Counts()

    def add(self, scored: Scored) -> None:
        reference, marginal = scored.served.package.reference, scored.predictions.marginal
        if reference is None:
            return
        tasks = scored.predictions.tasks
        scores = {task: reference.bins(task, marginal[:, tasks.index(task)]) for task in reference.scores}
        with self._lock:
            if scored.served is not self._of:
                self._of, self._old, self._new = scored.served, Counts(), Counts()
            elif self._new.num_rows >= WINDOW:
                self._old, self._new = self._new, Counts()
            self._new.add(len(marginal), scored.fields, scores)

    def report(self) -> dict[str, Any]:
        """Number of rows; stability of scores by task; missing and unknown shares by field, with those expected."""
        both, found = Counts(), {"num_rows": 0, "scores": {}, "fields": {}}
        with self._lock:
            if self._of is None:
                return found
            reference = self._of.package.reference
            for each in (self._old, self._new):
                both.add(each.num_rows, each.fields, each.scores)
        for task, bins in both.scores.items() if both.num_rows >= LEAST_ROWS else ():
            found["scores"][task] = population_stability(reference.scores[task], np.asarray(bins).tolist())
        for name, counts in both.fields.items():
            expected = reference.fields[name]
            found["fields"][name] = {
                "missing": counts.missing,
                "expected_missing": expected.missing,
                "unknown": counts.unknown,
                "expected_unknown": expected.unknown,
            }
        return {**found, "num_rows": both.num_rows}


class Metrics:
    """The metrics; those of the package and of drift are read when they are asked for."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange, self.drift, self.registry = exchange, Drift(), CollectorRegistry()
        of = {"registry": self.registry}
        self.requests = Counter("service_requests", "Answered requests.", ["path", "status"], **of)
        self.seconds = Histogram("service_seconds", "Time to an answer.", ["path"], buckets=SECONDS, **of)
        self.rows = Histogram("service_batch_rows", "Rows that were scored at once.", buckets=ROWS, **of)
        self.waiting = Gauge("service_waiting_rows", "Rows that wait, or are scored.", **of)
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def count(self, scored: Scored) -> None:
        self.rows.observe(len(scored.predictions.marginal))
        self.drift.add(scored)

    def answered(self, path: str, status: int, seconds: float) -> None:
        self.requests.labels(path, status).inc()
        self.seconds.labels(path).observe(seconds)

    def text(self) -> tuple[bytes, bytes]:
        """The metrics as Prometheus reads them, and the type of this text."""
        return generate_latest(self.registry), b"text/plain; version=0.0.4; charset=utf-8"

    def collect(self) -> Iterable[GaugeMetricFamily]:
        exchange, drift = self.exchange, self.drift.report()
        yield _gauge(
            "package", "The package that is served.", ["name", "id"], {(exchange.served.name, exchange.served.id): 1}
        )
        yield _gauge("packages_taken", "Packages that took another's place.", [], {(): exchange.num_taken})
        yield _gauge("packages_refused", "Packages that were refused.", [], {(): exchange.num_refused})
        yield _gauge("refused", "1 if the path has a package that was refused.", [], {(): bool(exchange.refused)})
        yield _gauge("drift_rows", "Rows that drift is measured on.", [], {(): drift["num_rows"]})
        scores = {(task,): value for task, value in drift["scores"].items()}
        yield _gauge("drift_scores", "Population stability index of the scores.", ["task"], scores)
        for what, told in (("missing", "Missing values"), ("unknown", "Unknown ids")):
            shares = {
                (name, of): shares[key]
                for name, shares in drift["fields"].items()
                for of, key in (("found", what), ("expected", f"expected_{what}"))
            }
            yield _gauge(f"drift_{what}", f"{told}, as a share.", ["field", "of"], shares)


def _gauge(name: str, text: str, labels: list[str], values: dict[Any, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"service_{name}", text, labels=labels)
    for of, value in values.items():
        family.add_metric([str(each) for each in of], value)
    return family
