"""A library's model in a process of its own, which needs torch, numpy and the library; only ours needs TorchRec."""

import gc
import importlib
import json
import os
import sys
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import record
from benchmarks.peers.common import WORKLOADS

PRODUCT = (1024, 368, 1024)  # rows, inner and columns of a product that is as fast as any of the models'


class Candidate(NamedTuple):
    """A library, the interpreter that has it, which of its ways to run a model, and the tree its sources come from."""

    library: str
    python: Path
    variant: str = ""
    tree: Path = record.ROOT


class Library(AbstractContextManager):
    """Asks a `Worker` in lines of JSON. After a failure, ``failure`` says why, and nothing more is asked."""

    def __init__(self, rows: Path, candidate: Candidate, setting: str, model: str) -> None:
        self.failure = ""
        name, variant = candidate.library, candidate.variant
        command = [candidate.python, *("-W", "ignore", "-m", "benchmarks.peers.worker"), rows, name, setting, model]
        self.process = Popen([*command, variant], cwd=candidate.tree, text=True, stdin=PIPE, stdout=PIPE)
        label = variant if candidate.tree == record.ROOT else f"{variant}, before"
        self.row = {"library": name, "variant": label, "setting": setting, "model": model}
        self.row |= self.ask("about") or {"versions": ""}

    def ask(self, do: str, **arguments: Any) -> Any:
        """Returns what the worker's method ``do`` returns, or None once anything has failed."""
        if self.failure:
            return None
        with suppress(BrokenPipeError):  # the process has ended: there is no answer either
            print(json.dumps({"do": do, **arguments}), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"its process ended with status {self.process.wait()}"}
        self.failure = answer.get("error", "")
        return answer.get("is")

    def __exit__(self, *_: object) -> None:
        self.process.communicate()


class Worker:
    """Trains and times a model on the rows of ``<workload>.npz``: training ids and labels, and test ids."""

    def __init__(self, rows: str, library: str, setting: str, model: str, variant: str) -> None:
        self.library = importlib.import_module(f"benchmarks.peers.{library}_models")
        self.after_imports = record.peak_memory()
        self.work = WORKLOADS[Path(rows).stem].of(model)
        self.ids, labels, self.test_ids = map(torch.from_numpy, np.load(rows).values())
        self.labels = labels[:, : len(self.work.tasks)]
        self.arguments = (model, setting, self.work)
        self.variant = {"variant": variant} if variant else {}

    def about(self) -> dict[str, str]:
        return {"versions": record.versions(), "note": getattr(self.library, "NOTE", "")}

    def build(self, seed: int = 0, fill: bool = False) -> int:
        """Builds the model, with the same values in every library if ``fill``; returns its number of parameters."""
        self.model = self.step = self.predict = None
        gc.collect()  # the last one's memory
        torch.manual_seed(seed)
        self.model, self.step, self.predict = self.library.make(
            *self.arguments, seed, self.labels.mean(0), fill, **self.variant
        )
        self.order = torch.from_numpy(np.random.default_rng([seed, 0]).permutation(len(self.ids)))  # `BatchLoader`'s
        return sum(parameter.numel() for parameter in self.model.parameters())

    def train(self, steps: int) -> float:
        """Takes steps on the next rows, which start over after the last; returns CPU seconds."""
        num_rows = steps * self.work.batch_size
        rows, self.order = self.order[:num_rows], self.order.roll(-num_rows)
        assert len(rows) == num_rows, "fewer rows than a turn takes"
        return record.processor_seconds(lambda: self.step(self.ids[rows], self.labels[rows]))

    def infer(self, batch_size: int, batches: int) -> float:
        """Predicts batches of test rows; returns CPU seconds."""
        return record.processor_seconds(lambda: self._predict(batch_size * batches, batch_size))

    def multiply(self) -> float:
        """Multiplies matrices of `PRODUCT`; returns CPU seconds."""
        rows, inner, columns = PRODUCT
        left, right = torch.ones(rows, inner), torch.ones(inner, columns)
        return record.processor_seconds(lambda: left @ right)

    def flops(self) -> float:
        """Returns the floating-point operations of the products that predict one row."""
        with FlopCounterMode(display=False) as counter:
            self._predict(64, 64)
        return counter.get_total_flops() / 64

    def probabilities(self, rows: int) -> list[list[float]]:
        """Returns the marginal probabilities of the first test rows."""
        return self._predict(rows, self.work.batch_size).tolist()

    @torch.no_grad()
    def _predict(self, rows: int, batch_size: int) -> torch.Tensor:
        self.model.eval()
        return torch.cat([self.predict(ids) for ids in self.test_ids[:rows].split(batch_size)])

    def memory(self) -> dict[str, float]:
        above = record.peak_memory() - self.after_imports
        return {"memory above imports": above, "memory after imports": self.after_imports}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    worker = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            worker = worker or Worker(*sys.argv[1:])
            answer = {"is": getattr(worker, request.pop("do"))(**request)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
