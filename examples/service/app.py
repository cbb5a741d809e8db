"""The service's paths: POST /predict, GET /health, GET /metrics; a wrong request is answered with one sentence.

It is a bare ASGI application, as four paths need no framework, and one on top costs more than a small model.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import orjson
from batching import Batching, score
from exchange import Exchange, Served
from watching import Metrics

from torchrec_mtl.errors import InputError, check_at_least, not_one_of
from torchrec_mtl.inference.predictor import Predictions, value_of_tasks

JSON = b"application/json"
SCALARS = {str, int, float, bool, type(None)}
METHODS = {"/predict": "POST", "/health": "GET", "/metrics": "GET"}


@dataclass(frozen=True)
class Limits:
    """What the service takes; the command line has the same names."""

    body_bytes: int = 2**20
    rows: int = 1000
    waiting_rows: int = 10_000
    connections: int = 1000
    body_seconds: float = 10.0

    SAYS: ClassVar = {
        "body_bytes": "largest body of a request",
        "rows": "most rows of a request",
        "waiting_rows": "most rows that wait; further requests are answered by 503",
        "connections": "most connections at a time; further ones are answered by 503",
        "body_seconds": "longest time that a request's body may take to come",
    }

    def __post_init__(self) -> None:
        check_at_least(1, **vars(self))


class RequestError(Exception):
    """An answer that is no 200: status, one sentence, further headers."""

    def __init__(self, status: int, sentence: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, headers


class App:
    """The ASGI application: ``app(scope, receive, send)``."""

    def __init__(self, exchange: Exchange, limits: Limits) -> None:
        self.exchange, self.limits = exchange, limits
        self.metrics = Metrics(exchange)
        self.batching = Batching(lambda: exchange.served, self.metrics.count)
        self.metrics.waiting.set_function(lambda: self.batching.num_waiting)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    async def _live(self, receive: Any, send: Any) -> None:
        await receive()
        watching = asyncio.create_task(self.exchange.watch(self._warm))
        await send({"type": "lifespan.startup.complete"})
        await receive()
        watching.cancel()
        await send({"type": "lifespan.shutdown.complete"})

    def _warm(self, served: Served) -> None:
        if self.batching.newest:
            score(served, self.batching.newest)

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        began, path, kind = time.perf_counter(), scope["path"], JSON
        status, headers = 200, ()
        try:
            if path not in METHODS:
                raise RequestError(404, f"the path must be one of {', '.join(METHODS)}")
            if scope["method"] != METHODS[path]:
                raise RequestError(405, f"{path} must be read with {METHODS[path]}", (b"allow", METHODS[path].encode()))
            if path == "/metrics":
                body, kind = self.metrics.text()
            else:
                body = orjson.dumps(self._health() if path == "/health" else await self._predict(scope, receive))
        except RequestError as error:
            status, body, headers = error.status, orjson.dumps({"error": str(error)}), error.headers
        except InputError as error:
            status, body = 400, orjson.dumps({"error": str(error)})
        except RuntimeError:  # it is logged where it was met
            status, body = 500, orjson.dumps({"error": "the rows could not be scored: see the log of the service"})
        sizes = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": [*sizes, *headers]})
        await send({"type": "http.response.body", "body": body})
        self.metrics.answered(path if path in METHODS else "other", status, time.perf_counter() - began)

    def _health(self) -> dict[str, Any]:
        served = self.exchange.served
        return {
            "status": "ok",
            "package": {"name": served.name, "id": served.id},
            "refused": self.exchange.refused or None,
            "drift": self.metrics.drift.report(),
        }

    async def _predict(self, scope: Any, receive: Any) -> dict[str, Any]:
        kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
        if kind.partition(b";")[0].strip().lower() != JSON:
            raise RequestError(415, "`content-type` must be application/json")
        body = await self._body(receive)
        served = self.exchange.served
        rows, worth = read_request(body, served, self.limits.rows)
        if self.batching.num_waiting + len(rows) > max(self.limits.waiting_rows, self.limits.rows):
            raise RequestError(503, "too many rows wait: try again in a second", (b"retry-after", b"1"))
        served, predictions = await self.batching.score(rows)
        return {"package": served.id, "predictions": as_rows(predictions, worth)}

    async def _body(self, receive: Any) -> bytes:
        try:
            return await asyncio.wait_for(self._read(receive), self.limits.body_seconds)
        except asyncio.TimeoutError:
            sentence = f"the body must come within {self.limits.body_seconds:g} seconds"
            raise RequestError(408, sentence, (b"connection", b"close")) from None

    async def _read(self, receive: Any) -> bytes:
        body, whole = bytearray(), False
        while not whole:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RequestError(400, "the body must be whole")
            body += message.get("body", b"")
            whole = not message.get("more_body")
            if len(body) > self.limits.body_bytes:
                sentence = f"the body must have at most {self.limits.body_bytes} bytes"
                raise RequestError(413, sentence, (b"connection", b"close"))
        return bytes(body)


def read_request(body: bytes, served: Served, most_rows: int) -> tuple[list[dict[str, Any]], Any]:
    """Returns the rows of a request, each with the package's columns, and the value of each task, or None.

    Raises:
        InputError: if the request is of another form; values of columns are checked when they are encoded.
        RequestError: if it has too many rows.
    """
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InputError(f"the body must be JSON ({error})") from None
    if not isinstance(request, dict) or not {"rows"} <= request.keys() <= {"rows", "values"}:
        raise InputError("the body must be an object with `rows`, and `values` if a score is wanted")
    rows, values = request["rows"], request.get("values")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise InputError("`rows` must be a list of at least one object")
    if len(rows) > most_rows:
        raise RequestError(413, f"`rows` must have at most {most_rows} rows, not {len(rows)}")
    columns = set(served.columns)
    for number, row in enumerate(rows):
        if row.keys() != columns:
            _explain(number, row, columns)
        for name, value in row.items():
            for each in value if type(value) is list else (value,):
                if type(each) not in SCALARS:
                    rule = "must be a number, a string, a boolean, null, or a list of them"
                    raise InputError(f"rows: column {name!r}, row {number} (counted from 0): {rule}")
    if values is None:
        return rows, None
    if not isinstance(values, dict) or not all(type(each) in (int, float) for each in values.values()):
        raise InputError("`values` must be an object with a number for each task that counts")
    return rows, value_of_tasks(served.package.manifest.tasks, values)


def _explain(number: int, row: dict[str, Any], columns: set[str]) -> None:
    where = f"rows: row {number} (counted from 0)"
    for name in row.keys() - columns:
        raise InputError(f"{where}: {not_one_of('column', name[:60], sorted(columns))}")
    raise InputError(f"{where}: column {min(columns - row.keys())!r} is missing; null stands for no value")


def as_rows(predictions: Predictions, worth: Any) -> list[dict[str, float]]:
    """Returns p(task), p(task | step before) and the score of each row, named as `Predictions.to_polars` names them."""
    columns = predictions.columns()
    if worth is not None:
        columns["score"] = predictions.worth(worth)
    return [dict(zip(columns, row, strict=True)) for row in np.column_stack(list(columns.values())).tolist()]
