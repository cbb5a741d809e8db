"""TAFE and BPCM beside Shared-Bottom and TorchRec's DLRM: ``python -m benchmarks.over_arches``.

Batches of 4,096 rows, 23 fields of dimension 16, a funnel of three steps, the models as in their papers, one thread.
TAFE's time depends on the share of inducing points that its selector does not set to 0: the bias of the selector is
shifted until that share of them is selected, at the smooth step's last width.

- over arch: from embeddings that are given to logits, as a ratio to Shared-Bottom's over arch.
- model: through TorchRec alone, with tables of 50,000 rows stepped by row-wise Adagrad, as a ratio to TorchRec's DLRM
  on equal tables, which reads 13 dense columns too (dense arch 512-256-16, over arch 512-512-1).

Times are one thread's processor time; candidates take turns. Three minutes.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import record
from benchmarks.stacks import Bare, dlrm, library
from torchrec_mtl import TaskChain
from torchrec_mtl.models.bpcm import BPCMArch
from torchrec_mtl.models.shared_bottom import SharedBottomArch
from torchrec_mtl.models.tafe import TAFEArch
from torchrec_mtl.modules import DynamicSelector, initialize_linear_layers
from torchrec_mtl.training.process_group import process_group

NUM_FIELDS, DIM, TASKS = 23, 16, TaskChain(["click", "cart", "purchase"])
SHARES = (0.25, 0.55, 1.0)
BASES = {"over arch": "Shared-Bottom", "model": "DLRM"}
SYSTEMS = {"Shared-Bottom": "shared_bottom", "BPCM": "bpcm", "TAFE": "tafe"}
DIRECTIONS = ("training", "inference")
Candidate = tuple[str, float | None]  # a name, and the share of points that TAFE selects
Run = Callable[[str], object]  # a pass in one of `DIRECTIONS`


def select(over_arch: nn.Module, fields: Tensor, share: float) -> None:
    """Shifts the selector's biases until ``share`` of the points is selected."""
    (selector,) = (module for module in over_arch.modules() if isinstance(module, DynamicSelector))
    selector.step.fill_(10**9)  # the smooth step's last width
    with torch.no_grad():
        selector.output.bias.zero_()
        logits = selector.output(selector.mlp(fields.flatten(1))).flatten().sort().values
        num_at_0 = round((1 - share) * len(logits))
        highest_at_0 = logits[num_at_0 - 1] if num_at_0 else logits[0] - 1
        selector.output.bias.fill_(float(-selector.gamma() / 2 - highest_at_0))
        found = float((selector(fields.flatten(1)) > 0).float().mean())
    if abs(found - share) > 0.01:
        raise RuntimeError(f"{found} of the points are selected, not {share}")


def over_arches(batch_size: int, shares: tuple[float, ...]) -> dict[Candidate, Run]:
    """Passes from given embeddings to logits, and back to the embeddings in training."""
    fields = 0.3 * torch.randn(batch_size, NUM_FIELDS, DIM)

    def run(arch: nn.Module, direction: str) -> None:
        arch.train(direction == "training")
        with torch.set_grad_enabled(arch.training):
            logits = arch(fields.clone().requires_grad_(arch.training))
        if arch.training:
            logits.sum().backward()

    archs: dict[Candidate, nn.Module] = {
        ("Shared-Bottom", None): SharedBottomArch(NUM_FIELDS * DIM, len(TASKS)),
        ("BPCM", None): BPCMArch(NUM_FIELDS, DIM, TASKS),
        **{("TAFE", share): TAFEArch(NUM_FIELDS, DIM, len(TASKS)) for share in shares},
    }
    for (_, share), arch in archs.items():
        initialize_linear_layers(arch)
        if share is not None:
            select(arch, fields, share)
    return {candidate: partial(run, arch) for candidate, arch in archs.items()}


def models(batch_size: int, num_rows: int, shares: tuple[float, ...]) -> dict[Candidate, Run]:
    """Optimizer steps, and forward passes with the loss; all through TorchRec alone."""

    def run(stack: Bare, direction: str) -> None:
        stack.model.train(direction == "training")
        if direction == "training":
            stack.take_step()
            return
        with torch.no_grad():
            stack.model(next(stack.batches))

    stacks: dict[Candidate, Bare] = {("DLRM", None): Bare(dlrm(batch_size, num_rows, 0, NUM_FIELDS, DIM))}
    candidates = [("Shared-Bottom", None), ("BPCM", None), *(("TAFE", share) for share in shares)]
    for name, share in candidates:
        stack = stacks[name, share] = Bare(library(SYSTEMS[name], batch_size, num_rows, 0))
        if share is not None:
            features, over_arch = (stack.model.module.get_submodule(f"model.{x}") for x in ("features", "over_arch"))
            with torch.no_grad():
                fields = features(next(stack.batches).sparse_features)
            select(over_arch, fields, share)
    return {candidate: partial(run, stack) for candidate, stack in stacks.items()}


def measure(results: record.Results, what: str, runs: dict[Candidate, Run], repeats: int) -> None:
    """Adds a row for each candidate and direction."""
    turns = {(*candidate, way): partial(run, way) for way in DIRECTIONS for candidate, run in runs.items()}
    times = record.in_turns(turns, repeats, record.processor_seconds, warm_up=1)
    for (name, share, way), own in times.items():
        about = {"what": what, "direction": way, "candidate": name, "selected": share}
        about |= {"base": BASES[what], "to_base": round(record.ratio(own, times[BASES[what], None, way]), 2)}
        results.add({**about, **record.spread([1e3 * x for x in own], "ms")})
        print(what, way, name, share or "", about["to_base"], flush=True)


def main() -> None:
    arguments = record.parse("over_arches", __doc__)
    quick = arguments.quick
    batch_size, num_rows, repeats = (64, 100, 2) if quick else (4096, 50_000, 15)
    with record.Results(arguments.results) as results:
        repeats, shares = arguments.repeats or repeats, SHARES[:1] if quick else SHARES
        measure(results, "over arch", over_arches(batch_size, shares), repeats)
        with process_group(torch.device("cpu")):
            measure(results, "model", models(batch_size, num_rows, shares), repeats)


if __name__ == "__main__":
    main()
