"""One library's process: ``python worker.py LIBRARY FOLDER`` waits for its turns, a line of JSON each.

A request is ``{"do": a method of Worker, ...its arguments}``, an answer ``{"is": ...}`` or ``{"error": ...}``.
"""

import importlib
import json
import os
import sys
import time
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Sizes, draw_alike, fill_alike
from torch import Tensor

PACKAGES = ("torch", "torchrec", "fbgemm-gpu-cpu", "fbgemm-gpu", "numpy", "torch-rechub", "deepctr-torch", "fuxictr")


def peak_memory() -> float:
    """MiB, of this process, so far; what `getrusage` says is never below what the parent had when it started this."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


class Worker:
    """``folder`` has ids int64 ``[N, fields]`` and labels float32 ``[N, T]`` of training, ids of test, and sizes."""

    def __init__(self, library: str, folder: Path) -> None:
        self.models = importlib.import_module(f"{library}_models")
        self.after_imports = peak_memory()
        self.ids, self.labels, self.test_ids = (
            torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("train_ids", "train_labels", "test_ids")
        )
        self.all_sizes = json.loads((folder / "sizes.json").read_text())

    def about(self) -> dict[str, Any]:
        installed = {package.metadata["Name"]: package.version for package in metadata.distributions()}
        versions = " ".join(f"{name}=={installed[name]}" for name in PACKAGES if name in installed)
        return {"models": self.models.MODELS, "versions": versions, "note": getattr(self.models, "NOTE", "")}

    def build(self, model: str, setting: str, seed: int = 0, fill: bool = False) -> int:
        """A new model, filled with the same values for every library if asked for; how many parameters it has."""
        self.candidate: Any = None
        num_tasks = 2 if model == "esmm" else self.labels.shape[1]  # the peers' ESMM has no more
        self.sizes = Sizes(**{**self.all_sizes, "num_tasks": num_tasks})
        torch.manual_seed(seed)
        rates = self.labels[:, :num_tasks].mean(0)
        start = fill_alike if fill else draw_alike
        self.candidate = self.models.make(model, setting, self.sizes, seed, rates, start)
        # the order of torchrec_mtl.data.BatchLoader
        self.order = torch.from_numpy(np.random.default_rng([seed, 0]).permutation(len(self.ids)))
        return sum(parameter.numel() for parameter in self.candidate.module.parameters())

    def train(self, steps: int) -> float:
        """CPU seconds of so many steps on the next rows; after the last rows come the first."""
        began = time.process_time()
        num_rows = steps * self.sizes.batch_size
        rows, self.order = self.order[:num_rows], self.order.roll(-num_rows)
        assert len(rows) == num_rows, "fewer rows than a turn takes"
        self.candidate.train(self.ids[rows], self.labels[rows, : self.sizes.num_tasks])
        return time.process_time() - began

    def infer(self, steps: int) -> float:
        """CPU seconds of predicting so many batches of test rows."""
        began = time.process_time()
        self._predict(self.test_ids[: steps * self.sizes.batch_size])
        return time.process_time() - began

    def probabilities(self, file: str, rows: int) -> None:
        """Saves those of the first test rows."""
        np.save(file, self._predict(self.test_ids[:rows]).numpy())

    @torch.no_grad()
    def _predict(self, ids: Tensor) -> Tensor:
        self.candidate.module.eval()
        return torch.cat([self.candidate.predict(some) for some in ids.split(self.sizes.batch_size)])

    def memory(self) -> list[float]:
        """Peak in MiB, and what imports alone took."""
        return [peak_memory(), self.after_imports]


def main() -> None:
    library, folder = sys.argv[1], Path(sys.argv[2])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    worker = Worker(library, folder)
    with getattr(worker.models, "running", nullcontext)():
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer = {"is": getattr(worker, request.pop("do"))(**request)}
            except Exception as error:
                answer = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
