"""Times the paths of TAFE's attention on a CPU; `benchmarks.gpu` times them on a GPU::

    python -m benchmarks.attention                  # some minutes
    python -m benchmarks.attention --quick          # small

Each path's output and gradients are first checked against the definition in float64; a path that is wrong or fails gets
a row with its `error` and no time. Times are milliseconds of one thread's CPU time, which other work disturbs least.
Whole models run beside Shared-Bottom.
"""

import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import record
from torchrec_mtl import TaskChain, ops
from torchrec_mtl.ops import library

# Samples, fields, points, embedding dimension, heads, layers, tasks, and the type of the numbers.
Size = namedtuple("Size", "B F K D m L T dtype")
SIZES = {
    "paper": Size(1024, 20, 64, 18, 2, 4, 2, torch.float32),
    "mid": Size(16384, 26, 64, 32, 2, 4, 2, torch.bfloat16),
    "large": Size(32768, 128, 64, 64, 4, 4, 4, torch.bfloat16),
}
BOTH = "forward and backward"
WARM_UP = 2
CHUNK = 1024  # samples at a time in the check, whose float64 takes memory
# Beyond twice the definition's own error; relative, but absolute for a norm below 1.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 1e-2}

Runs = dict[str, Callable[[], tuple[Tensor, ...]]]  # by candidate


def draw(size: Size, active: float, device: str) -> list[Tensor]:
    """Inputs, a selection with a share ``active`` of points not at 0 (a third of them between 0 and 1), weights."""
    B, F, K, D, _, L, T, dtype = size  # noqa: N806

    def weights(*lead: int, rows: int) -> list[Tensor]:
        square = [torch.randn(*lead, D, D) / D**0.5 for _ in range(3)]
        return [torch.randn(L, rows, D), *square, torch.ones(*lead, D), torch.zeros(*lead, D)]

    torch.manual_seed(0)
    with torch.device(device):
        z = torch.where(torch.rand(B, K) < 1 / 3, torch.rand(B, K), torch.ones(B, K)) * (torch.rand(B, K) < active)
        inputs, *rest = torch.randn(B, F, D), *weights(L, rows=K), *weights(L, T, rows=T)
    return [x.requires_grad_() for x in (inputs.to(dtype), z.to(dtype).float(), *(x.to(dtype) for x in rest))]


def stack(backend: str, heads: int) -> Callable[..., Tensor]:
    """The operation as a function of `draw`'s tensors."""

    def run(inputs: Tensor, z: Tensor, *weights: Tensor) -> Tensor:
        layers, adapters = ops.GeneratorWeights(*weights[:6]), ops.AdapterWeights(*weights[6:])
        return ops.inducing_stack(inputs, z.to(inputs.dtype), ops.InducingStack(layers, adapters, heads), backend)

    return run


def step(function: Callable[..., Tensor], tensors: list[Tensor], direction: str) -> Callable[[], tuple[Tensor, ...]]:
    """What is timed: computes the output or, with the backward, the output and the gradients of all tensors."""
    inputs, (_, tasks, dim) = tensors[0], tensors[8].shape
    upstream = torch.randn(tasks, dim, generator=torch.Generator().manual_seed(1)).to(inputs).repeat(len(inputs), 1, 1)

    def both() -> tuple[Tensor, ...]:
        output = function(*tensors)
        return output.detach(), *torch.autograd.grad(output, tensors, upstream)

    return both if direction == BOTH else torch.no_grad()(lambda: (function(*tensors),))


def expect(tensors: list[Tensor], heads: int) -> list[tuple[Tensor, Tensor]]:
    """The definition's output and gradients in float64, each with the error that is allowed."""
    dtype, found = tensors[0].dtype, []
    for kind in (torch.float64, dtype):
        parts = []
        for inputs, z in zip(*(x.split(CHUNK) for x in tensors[:2]), strict=True):
            leaves = [x.detach().to(kind).requires_grad_() for x in (inputs, z, *tensors[2:])]
            parts.append([x.double() for x in step(stack("reference", heads), leaves, BOTH)()])
        found.append([torch.cat(x) if i < 3 else sum(x) for i, x in enumerate(zip(*parts, strict=True))])
    return [(x, 2 * (y - x).norm() + TOLERANCE[dtype] * x.norm().clamp_min(1.0)) for x, y in zip(*found, strict=True)]


def check(results: tuple[Tensor, ...], expected: list[tuple[Tensor, Tensor]]) -> None:
    """Raises ArithmeticError unless the output and the gradients, if there are any, are as exact as expected."""
    for actual, (exact, allowed) in zip(results, expected, strict=False):
        error = (actual - exact).norm()
        if not error <= allowed:  # so a NaN is wrong
            raise ArithmeticError(f"the error is {error:.2e}, more than {allowed:.2e}")


def add(results: record.Results, about: record.Row, candidate: str, figures: record.Row) -> None:
    """Writes and prints a row."""
    row = {**about, "candidate": candidate, **figures}
    print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    results.add(row)


def checked(
    results: record.Results, about: record.Row, size: Size, shares: tuple[float, ...], functions: dict
) -> Iterator[tuple[record.Row, Runs]]:
    """For each share of points selected and each direction, the steps whose results are right."""
    for active in shares:
        tensors = draw(size, active, "cpu")
        expected = expect(tensors, size.m)
        for direction in ("forward", BOTH):
            case, runs = {**about, "active": active, "direction": direction}, Runs()
            for candidate, function in functions.items():
                try:
                    run = step(function, tensors, direction)
                    check(run(), expected)
                    runs[candidate] = run
                except Exception as error:
                    add(results, case, candidate, {"error": record.in_one_line(error)})
            yield case, runs


def models() -> Iterator[tuple[record.Row, Runs]]:
    """Training steps with Adam, on all parameters or on all but the tables, and inference, as at a training's end."""
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor  # the rest needs torch alone

    from torchrec_mtl import MultiTaskTrain, data, losses, models, modules

    B, F, _, D, *_ = SIZES["paper"]  # noqa: N806
    generator, rows, tasks = torch.Generator().manual_seed(0), 10_000, TaskChain(["click", "purchase"])
    keys, ids = [f"f{i}" for i in range(F)], torch.randint(rows, (F * B,), generator=generator)
    sparse = KeyedJaggedTensor.from_lengths_sync(keys, ids, lengths=torch.ones(F * B, dtype=torch.int64))
    labels = (torch.rand(B, 2, generator=generator) < 0.3).int().cumprod(1).float()
    features = torch.zeros(B, 0), sparse
    batch = data.MultiTaskBatch(*features, labels, None)

    def train(wrapped: nn.Module, parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
        for x, gradient in zip(parameters, torch.autograd.grad(wrapped(batch)[0], parameters), strict=True):
            x.grad = gradient
        optimizer.step()

    turns = {"training step": Runs(), "training step, tables fixed": Runs(), "inference": Runs()}
    systems = {"Shared-Bottom": (models.SharedBottom, losses.CrossEntropyLoss)}
    for name, (model_class, loss) in {**systems, "TAFE": (models.TAFE, losses.DependenceLoss)}.items():
        tables = [EmbeddingBagConfig(name=k, embedding_dim=D, num_embeddings=rows, feature_names=[k]) for k in keys]
        model = model_class(EmbeddingBagCollection(tables=tables), tasks)
        for module in model.modules():
            if isinstance(module, modules.DynamicSelector):
                module.step.fill_(10**9)
        wrapped = MultiTaskTrain(model, loss(tasks))
        for direction, trained in zip(turns, (wrapped, model.over_arch), strict=False):
            parameters = list(trained.parameters())
            turns[direction][name] = partial(train, wrapped, parameters, torch.optim.Adam(parameters, 1e-3))
        turns["inference"][name] = torch.no_grad()(partial(model, *features))
    active = float((model.over_arch.extraction.generator.select(model.embed(*features))[0] > 0).float().mean())
    for direction, runs in turns.items():
        yield {"what": "model", "tasks": 2, "active": round(active, 2), "direction": direction}, runs


def measure_cpu(results: record.Results, quick: bool, repeats: int) -> None:
    """Whole models, then the stack at the paper's size."""

    def add_turns(case: record.Row, runs: Runs, **bases: str) -> None:
        times = record.in_turns(runs, repeats, record.processor_seconds, WARM_UP)
        for candidate, own in times.items():
            ratios = {column: round(record.ratio(own, times[base]), 3) for column, base in bases.items()}
            add(results, case, candidate, {**ratios, **record.spread([1e3 * x for x in own], "ms")})

    for case, runs in models():
        add_turns(case, runs, to_shared_bottom="Shared-Bottom")
    paths = ("reference", "sdpa", "compact", *(["cpp"] if library.load() else []), "auto")
    shares = {2: (0.25,)} if quick else {2: (0.1, 0.25, 0.5, 0.6, 1.0), 4: (0.25, 1.0)}
    for tasks, of_tasks in shares.items():
        size, about = SIZES["paper"]._replace(T=tasks), {"what": "stack", "tasks": tasks}
        functions = {path: stack(path, size.m) for path in paths}
        for case, runs in checked(results, about, size, of_tasks, functions):
            add_turns(case, runs, to_reference="reference", to_sdpa="sdpa")


def main() -> None:
    arguments = record.parse("inducing_attention_cpu", __doc__)
    quick = arguments.quick
    with record.Results(arguments.results) as results:
        measure_cpu(results, quick, arguments.repeats or (1 if quick else 9))
    failed = sum("error" in row for row in results.rows)
    if failed:
        sys.exit(f"error: {failed} times are missing; their rows say why")


if __name__ == "__main__":
    main()
