"""What TAFE's attention costs on a CPU, path by path, and what the whole model does beside Shared-Bottom::

    python -m benchmarks.inducing_attention_cpu      # some minutes

At the paper's size. First every path is held to the definition in float64, outputs and gradients. Then the paths take
turns. Medians, in milliseconds of one thread's CPU time, which other work on the machine disturbs least, go to
``benchmarks/results/inducing_attention_cpu.csv``. The C++ path is there if it has been built.
"""

import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

from benchmarks import record
from torchrec_mtl import MultiTaskTrain, TaskChain, ops
from torchrec_mtl.data import MultiTaskBatch
from torchrec_mtl.losses import CrossEntropyLoss, DependenceLoss
from torchrec_mtl.models import TAFE, SharedBottom
from torchrec_mtl.modules import DynamicSelector
from torchrec_mtl.ops import AdapterWeights, GeneratorWeights, InducingStack
from torchrec_mtl.ops.small_attention import library

ACTIVE = (0.1, 0.25, 0.5, 0.6, 1.0)
B, F, D, K, HEADS, LAYERS = 1024, 20, 18, 64, 2, 4
TOLERANCE = 3e-6  # relative, beyond twice the error of the definition in float32
REPEATS, WARM_UP = 9, 2

Functions = dict[str, Callable[[], object]]


def draw(active: float, num_tasks: int) -> list[Tensor]:
    """Inputs, a selection with that share of points not at 0 (a third of them between 0 and 1), weights."""
    torch.manual_seed(0)
    z = torch.where(torch.rand(B, K) < 1 / 3, torch.rand(B, K), torch.ones(B, K)) * (torch.rand(B, K) < active)

    def weights(*lead: int, rows: int) -> list[Tensor]:
        square = [torch.randn(*lead, D, D) / D**0.5 for _ in range(3)]
        return [torch.randn(LAYERS, rows, D), *square, torch.ones(*lead, D), torch.zeros(*lead, D)]

    tensors = [torch.randn(B, F, D), z, *weights(LAYERS, rows=K), *weights(LAYERS, num_tasks, rows=num_tasks)]
    return [x.requires_grad_() for x in tensors]


def stack(tensors: list[Tensor], path: str) -> Tensor:
    inputs, z, *weights = tensors
    stack = InducingStack(GeneratorWeights(*weights[:6]), AdapterWeights(*weights[6:]), HEADS)
    return ops.inducing_stack(inputs, z, stack, path)


def forward(tensors: list[Tensor], path: str) -> Tensor:
    with torch.no_grad():
        return stack(tensors, path)


def both(tensors: list[Tensor], path: str) -> tuple[Tensor, ...]:
    output = stack(tensors, path)
    return output, *torch.autograd.grad(output, tensors, torch.ones_like(output).cumsum(1))


def check(tensors: list[Tensor], paths: list[str]) -> None:
    """Stops unless each path is about as exact as the definition in the same precision."""
    exact = both([x.detach().double().requires_grad_() for x in tensors], "reference")
    allowed = [
        2 * (x - y).norm() + TOLERANCE * y.norm() for x, y in zip(both(tensors, "reference"), exact, strict=True)
    ]
    for path in paths:
        for actual, expected, limit in zip(both(tensors, path), exact, allowed, strict=True):
            if (actual - expected).norm() > limit:
                sys.exit(f"error: {path} is wrong by {(actual - expected).norm():.2e}, more than {limit:.2e}")


def rows_of(functions: Functions, bases: dict[str, str], about: record.Row, repeats: int) -> list[record.Row]:
    """Times them in turns; a row each, with its ratio to each base's time in the same round."""
    times = record.in_turns(functions, repeats, record.processor_seconds, WARM_UP)
    rows = []
    for name, own in times.items():
        ratios = {column: round(record.ratio(own, times[base]), 3) for column, base in bases.items()}
        rows.append({**about, "candidate": name, **ratios, **record.spread([1e3 * x for x in own], "ms")})
        print(" ".join(f"{key}={value}" for key, value in rows[-1].items()), flush=True)
    return rows


def measure_stack(repeats: int, cases: list[tuple[int, float]]) -> list[record.Row]:
    """Cases are numbers of tasks and shares of points selected."""
    paths = ["reference", "sdpa", "compact", *(["cpp"] if library.load() else []), "auto"]
    bases = {"to_reference": "reference", "to_sdpa": "sdpa"}
    rows = []
    for num_tasks, active in cases:
        tensors = draw(active, num_tasks)
        check(tensors, paths)
        for direction, run in {"forward": forward, "forward and backward": both}.items():
            functions: Functions = {path: partial(run, tensors, path) for path in paths}
            about = {"what": "stack", "tasks": num_tasks, "active": active, "direction": direction}
            rows += rows_of(functions, bases, about, repeats)
    return rows


def train(
    wrapped: nn.Module, batch: MultiTaskBatch, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer
) -> None:
    """One step of these parameters."""
    loss, _ = wrapped(batch)
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    optimizer.step()


@torch.no_grad()
def infer(model: nn.Module, batch: MultiTaskBatch) -> Tensor:
    return model(batch.dense_features, batch.sparse_features)


def measure_models(repeats: int) -> list[record.Row]:
    """A step with Adam on everything or on all but the tables, and logits; the smooth step stands where it ends."""
    generator = torch.Generator().manual_seed(0)
    keys, tasks, size = [f"f{i}" for i in range(F)], TaskChain(["click", "purchase"]), 10_000
    ids = torch.randint(size, (F * B,), generator=generator)
    sparse = KeyedJaggedTensor.from_lengths_sync(keys, ids, lengths=torch.ones(F * B, dtype=torch.int64))
    labels = (torch.rand(B, 2, generator=generator) < 0.3).int().cumprod(1).float()
    batch = MultiTaskBatch(torch.zeros(B, 0), sparse, labels, None)
    turns: dict[str, Functions] = {"training step": {}, "training step, tables fixed": {}, "inference": {}}
    for name, model_class, loss in [("Shared-Bottom", SharedBottom, CrossEntropyLoss), ("TAFE", TAFE, DependenceLoss)]:
        tables = [EmbeddingBagConfig(name=k, embedding_dim=D, num_embeddings=size, feature_names=[k]) for k in keys]
        model = model_class(EmbeddingBagCollection(tables=tables), tasks)
        for module in model.modules():
            if isinstance(module, DynamicSelector):
                module.step.fill_(10**9)
        wrapped = MultiTaskTrain(model, loss(tasks))
        everything = list(wrapped.parameters())
        arch = list(model.over_arch.parameters())
        for direction, parameters in zip(turns, (everything, arch), strict=False):
            turns[direction][name] = partial(train, wrapped, batch, parameters, torch.optim.Adam(parameters, 1e-3))
        turns["inference"][name] = partial(infer, model, batch)
    with torch.no_grad():
        fields = model.embed(batch.dense_features, batch.sparse_features)
        active = float((model.over_arch.extraction.generator.select(fields)[0] > 0).float().mean())
    about = {"what": "model", "tasks": 2, "active": round(active, 2)}
    rows = []
    for direction, functions in turns.items():
        own = {**about, "direction": direction}
        rows += rows_of(functions, {"to_shared_bottom": "Shared-Bottom"}, own, repeats)
    return rows


def main() -> None:
    arguments = record.parse("inducing_attention_cpu", __doc__)
    circumstances = record.begin()
    repeats = arguments.repeats or (1 if arguments.quick else REPEATS)
    cases = [(2, 0.25)] if arguments.quick else [*((2, share) for share in ACTIVE), (4, 0.25), (4, 1.0)]
    record.write(arguments.results, measure_models(repeats) + measure_stack(repeats, cases), circumstances)


if __name__ == "__main__":
    main()
