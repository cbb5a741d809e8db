"""Training and inference time of each model as a ratio to Shared-Bottom's, measured turn by turn: TAFE figure 8."""

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from torchrec_mtl.data import BatchLoader, Schema, Split, read_split
from torchrec_mtl.files import write_whole
from torchrec_mtl.jobs.compare.plan import Plan
from torchrec_mtl.jobs.compare.runs import provenance
from torchrec_mtl.jobs.registry import MODELS
from torchrec_mtl.jobs.settings import RunConfig
from torchrec_mtl.jobs.train import build_model
from torchrec_mtl.modules import DynamicSelector, start_from_base_rates
from torchrec_mtl.training.distributed import default_device, distribute, process_group

BASE = "shared_bottom"
FILE = "efficiency.json"
ROUNDS, STEPS, WARM_UP = 9, 5, 3


def _seconds(function: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(STEPS):
        function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - began) / STEPS


class _Timed:
    """A model with its optimizer and batches; its smooth step stands where training leaves it."""

    def __init__(self, config: RunConfig, split: Split, device: torch.device) -> None:
        built = build_model(config, split.schema, device)
        start_from_base_rates(built, split.base_rates())
        for module in built.modules():
            if isinstance(module, DynamicSelector):
                module.step.fill_(10**9)
        self.megabytes = sum(p.numel() * p.element_size() for p in built.parameters()) / 1e6
        self.model, self.optimizer = distribute(built, config.training, device)
        self.predict = built.get_submodule("model")
        self.batch_size = config.training.batch_size
        loader = BatchLoader(split, self.batch_size, drop_last=True)
        self.batches = self._forever(loader, device)

    def _forever(self, loader: BatchLoader, device: torch.device) -> Iterator[Any]:
        while True:
            for batch in loader:
                yield batch.to(device)

    def train(self) -> None:
        """One optimizer step."""
        self.optimizer.zero_grad()
        loss, _ = self.model(next(self.batches))
        loss.backward()
        self.optimizer.step()

    @torch.no_grad()
    def infer(self) -> None:
        """Logits of one batch."""
        batch = next(self.batches)
        self.predict(batch.dense_features, batch.sparse_features)


def measure_efficiency(plan: Plan) -> None:
    """Times every model but the ablations, and writes ``efficiency.json``.

    One process; the models take turns, ``ROUNDS`` times ``STEPS`` batches each; a ratio is the median over the
    rounds of a model's time to Shared-Bottom's in the same round.
    """
    chosen = {system: c for system, c in plan.chosen().items() if MODELS[system].ablation_of is None}
    if BASE not in chosen:
        print(f"efficiency: not measured, as {BASE} is not compared", flush=True)
        return
    device = default_device()
    split = read_split(plan.dataset, "valid", Schema.load(plan.dataset))
    times: dict[str, dict[str, list[float]]] = {s: {"train": [], "infer": []} for s in chosen}
    with process_group(device):
        timed = {s: _Timed(plan.config(s, c, plan.seeds[0]), split, device) for s, c in chosen.items()}
        for round_number in range(WARM_UP + ROUNDS):
            for system, model in timed.items():
                for name, function in (("train", model.train), ("infer", model.infer)):
                    model.model.train(name == "train")
                    seconds = _seconds(function, device)
                    if round_number >= WARM_UP:
                        times[system][name].append(seconds)
    rows = []
    for system, model in timed.items():
        row: dict[str, Any] = {"model": system, "parameter_mb": model.megabytes}
        for name, measured in times[system].items():
            ratios = [own / base for own, base in zip(measured, times[BASE][name], strict=True)]
            row[f"{name}_ratio"] = statistics.median(ratios)
            row[f"{name}_ratio_low"], row[f"{name}_ratio_high"] = sorted(ratios)[1], sorted(ratios)[-2]
            row[f"{name}_samples_per_second"] = model.batch_size / statistics.median(measured)
        rows.append(row)
    about = {"threads": torch.get_num_threads(), "load": os.getloadavg()[0], "rounds": ROUNDS, **provenance()}
    plan.directory.mkdir(parents=True, exist_ok=True)
    write_whole(plan.directory / FILE, json.dumps({**about, "rows": rows}, indent=1) + "\n")
    print(f"efficiency: {plan.directory / FILE}", flush=True)
