"""Time of training and inference of each model relative to Shared-Bottom, measured in turns: TAFE figure 8."""

import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from torchrec_mtl.data import Split, StreamedSplit, load_schema
from torchrec_mtl.data.steps import StepLoader
from torchrec_mtl.files import to_json, write_whole
from torchrec_mtl.jobs.build import build_to_train
from torchrec_mtl.jobs.compare.plan import Plan
from torchrec_mtl.jobs.compare.runs import provenance
from torchrec_mtl.jobs.datasets import open_split
from torchrec_mtl.jobs.run_config import RunConfig
from torchrec_mtl.jobs.single_run import loader
from torchrec_mtl.modules import DynamicSelector
from torchrec_mtl.training import MultiTaskTrain
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.process_group import default_device, process_group

BASE = "shared_bottom"
FILE = "efficiency.json"
ROUNDS, STEPS, WARM_UP = 9, 5, 3


def build_settled(config: RunConfig, split: Split | StreamedSplit, device: torch.device) -> MultiTaskTrain:
    """The model with its loss before training, but with its smooth step as at the end of training."""
    built = build_to_train(config, split, device)
    for module in built.modules():
        if isinstance(module, DynamicSelector):
            module.step.fill_(10**9)
    return built


def _seconds(function: Callable[[], object], device: torch.device, calls: int) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    for _ in range(calls):
        function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - began) / calls


class Timed:
    """A model with its optimizer and batches, and the time of a batch in each round.

    Attributes:
        seconds: seconds of a batch in each round, by "train" and "infer".
        megabytes: size of the parameters.
    """

    def __init__(self, config: RunConfig, split: Split | StreamedSplit, device: torch.device) -> None:
        built = build_settled(config, split, device)
        self.megabytes = sum(p.numel() * p.element_size() for p in built.parameters()) / 1e6
        self.model, self.optimizer = distribute(built, config.training, device)
        self.predict = built.get_submodule("model")
        self.batch_size = config.training.batch_size
        batches = loader(split, self.batch_size, drop_last=True, with_groups="groups" in built.of_batch)
        self.batches = self._forever(batches, device)
        self.seconds: dict[str, list[float]] = {"train": [], "infer": []}

    def _forever(self, loader: StepLoader, device: torch.device) -> Iterator[Any]:
        while True:
            for batch in loader:
                yield batch.to(device)

    def train(self) -> None:
        """Takes one optimizer step."""
        self.optimizer.zero_grad()
        loss, _ = self.model(next(self.batches))
        loss.backward()
        self.optimizer.step()

    @torch.no_grad()
    def infer(self) -> None:
        """Computes the logits of one batch."""
        batch = next(self.batches)
        self.predict(batch.dense_features, batch.sparse_features)


def time_in_turns(
    configs: Mapping[str, RunConfig],
    split: Split | StreamedSplit,
    device: torch.device,
    rounds: int = ROUNDS,
    steps: int = STEPS,
    warm_up: int = WARM_UP,
) -> dict[str, Timed]:
    """Times models that take turns in one process: ``rounds`` times ``steps`` batches, after ``warm_up`` rounds."""
    models = {system: Timed(config, split, device) for system, config in configs.items()}
    for round_number in range(warm_up + rounds):
        for model in models.values():
            for name, function in (("train", model.train), ("infer", model.infer)):
                model.model.train(name == "train")
                seconds = _seconds(function, device, steps)
                if round_number >= warm_up:
                    model.seconds[name].append(seconds)
    return models


def ratios(model: Timed, base: Timed, name: str) -> list[float]:
    """Ratios of the time of ``model`` to that of ``base`` in the same round."""
    return [own / of_base for own, of_base in zip(model.seconds[name], base.seconds[name], strict=True)]


def measure_efficiency(plan: Plan) -> None:
    """Times every model except ablations, and writes ``efficiency.json``.

    A ratio is the median over the rounds of the model's time divided by Shared-Bottom's in the same round.
    """
    chosen = {system: c for system, c in plan.chosen().items() if plan.by_name[system].ablation_of is None}
    of_all = {system: plan.config(system, candidate, plan.seeds[0]) for system, candidate in chosen.items()}
    configs = {system: config for system, config in of_all.items() if isinstance(config, RunConfig)}
    if BASE not in configs:
        print(f"efficiency: not measured, as {BASE} is not compared", flush=True)
        return
    device = default_device()
    split = open_split(plan.dataset, "valid", load_schema(plan.dataset))
    with process_group(device):
        timed = time_in_turns(configs, split, device)
    rows = []
    for system, model in timed.items():
        row: dict[str, Any] = {"model": system, "title": plan.by_name[system].title, "parameter_mb": model.megabytes}
        for name, measured in model.seconds.items():
            of_rounds = sorted(ratios(model, timed[BASE], name))
            row[f"{name}_ratio"] = statistics.median(of_rounds)
            row[f"{name}_ratio_low"], row[f"{name}_ratio_high"] = of_rounds[1], of_rounds[-2]
            row[f"{name}_samples_per_second"] = model.batch_size / statistics.median(measured)
        rows.append(row)
    about = {
        "data": plan.data,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "rounds": ROUNDS,
        **provenance(),
    }
    plan.directory.mkdir(parents=True, exist_ok=True)
    write_whole(plan.directory / FILE, to_json({**about, "rows": rows}, indent=1) + "\n")
    print(f"efficiency: {plan.directory / FILE}", flush=True)
