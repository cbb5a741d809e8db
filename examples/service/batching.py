"""Requests that wait are scored together, in one thread: what comes while it scores is the next batch.

There is no timer: alone, a request does not wait, and the more there are, the larger the batches.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import polars as pl
import pyarrow as pa
import torch
from exchange import Served

from torchrec_mtl.data.table.drift import FieldCounts, count_encoded
from torchrec_mtl.errors import InputError
from torchrec_mtl.inference.predictor import Predictions, unlabelled

LOG = logging.getLogger("uvicorn.error")
BATCH_ROWS = 1024  # beyond which a batch takes no further request
Row = dict[str, Any]


@dataclass(frozen=True)
class Scored:
    """What was scored at once, with the values of each field counted."""

    served: Served
    predictions: Predictions
    fields: dict[str, FieldCounts]


class Batching:
    """Scores the rows of requests.

    Args:
        served: returns what is served now; asked once for each batch.
        count: called with each batch that was scored, in the thread.

    Attributes:
        num_waiting: number of rows that wait, or are scored.
        newest: the rows of the newest request that was scored.
    """

    def __init__(self, served: Callable[[], Served], count: Callable[[Scored], object]) -> None:
        self.num_waiting, self.newest = 0, list[Row]()
        self._served, self._count = served, count
        self._queue: deque[tuple[list[Row], asyncio.Future[Any]]] = deque()
        self._thread = ThreadPoolExecutor(1, "scoring")
        self._worker: asyncio.Task[None] | None = None

    async def score(self, rows: list[Row]) -> tuple[Served, Predictions]:
        """Returns the predictions for rows, and the package that made them.

        Raises:
            InputError: if a row breaks a rule.
        """
        answer = asyncio.get_running_loop().create_future()
        self._queue.append((rows, answer))
        self.num_waiting += len(rows)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())
        return await answer

    async def _work(self) -> None:
        while self._queue:
            taken = [self._queue.popleft()]
            num_rows = len(taken[0][0])
            while self._queue and num_rows + len(self._queue[0][0]) <= BATCH_ROWS:
                taken.append(self._queue.popleft())
                num_rows += len(taken[-1][0])
            requests, loop = [rows for rows, _ in taken], asyncio.get_running_loop()
            answers = await loop.run_in_executor(self._thread, self._score, self._served(), requests)
            self.num_waiting -= num_rows
            for (rows, future), answer in zip(taken, answers, strict=True):
                self.newest = self.newest if isinstance(answer, Exception) else rows
                if future.cancelled():
                    continue
                future.set_exception(answer) if isinstance(answer, Exception) else future.set_result(answer)

    def _score(self, served: Served, requests: Sequence[list[Row]]) -> list[Any]:
        """The answer to each request: predictions, or the error that it alone would have met."""
        try:
            scored = score(served, [row for rows in requests for row in rows])
            self._count(scored)
        except InputError as error:
            if len(requests) == 1:
                return [error]
            half = len(requests) // 2  # the others are not to suffer from one bad request
            return [*self._score(served, requests[:half]), *self._score(served, requests[half:])]
        except BaseException as error:  # a panic of Rust is no Exception, and must not leave requests without an answer
            LOG.exception("a batch of %d requests could not be scored", len(requests))
            return [RuntimeError(str(error))] * len(requests)
        answers, first, all_rows = [], 0, scored.predictions
        for rows in requests:
            of = slice(first, first := first + len(rows))
            part = replace(all_rows, marginal=all_rows.marginal[of], conditional=all_rows.conditional[of])
            answers.append((served, part))
        return answers


def score(served: Served, rows: Sequence[Row]) -> Scored:
    """Scores rows that have the columns of the package; raises `InputError` if a value breaks a rule."""
    package = served.package
    columns = {}
    for name in served.columns:
        try:
            columns[name] = pa.array([row[name] for row in rows])  # unlike Polars, it makes no text of numbers
        except (pa.ArrowException, TypeError, OverflowError) as error:
            raise InputError(f"rows: column {name!r} must hold values of one type ({error})") from error
    arrow = pa.RecordBatch.from_pydict(columns)
    frame = pl.from_arrow(arrow) if package.encoder is None else package.encoder.encode(arrow)
    split = unlabelled(package.schema, frame)
    batch = split.batch(torch.arange(len(split)))
    if package.encoder is None:
        fields = {name: FieldCounts(of, 0, unknown, ()) for name, (unknown, of) in split.num_unknown.items()}
    else:
        fields = count_encoded(package.encoder, batch)
    return Scored(served, package.score_batch(batch), fields)
