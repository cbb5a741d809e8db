"""What each model costs beside Shared-Bottom and TorchRec's DLRM: ``python -m benchmarks.model_costs``.

Batches of 4,096 rows, 23 tables of 50,000 rows and dimension 16, stepped by row-wise Adagrad, a funnel of three steps,
every model with the sizes of its paper and its loss. DLRM has equal tables and reads 13 dense columns too (dense arch
512-256-16, over arch 512-512-1). All of them go through this library's training loop, on one thread.

- training: an optimizer step. inference: a forward pass without gradients.
- parameters: those outside the tables, in thousands.

Times are one thread's processor time; candidates take turns. Six minutes.
"""

from functools import partial

import torch

from benchmarks import record
from benchmarks.stacks import dlrm, library, ours
from torchrec_mtl.systems import SYSTEMS
from torchrec_mtl.training.loop import TrainingLoop
from torchrec_mtl.training.process_group import process_group

DIRECTIONS = ("training", "inference")
BASES = ("shared_bottom", "dlrm")
CANDIDATES = ("dlrm", *(name for name, system in SYSTEMS.items() if system.ablation_of is None))


def make(name: str, batch_size: int, num_rows: int) -> tuple[TrainingLoop, int]:
    """Returns a model's training loop, and the number of parameters outside its tables."""
    sizes = (batch_size, num_rows, 0)
    subject = dlrm(*sizes, num_fields=23, dim=16) if name == "dlrm" else library(name, *sizes)
    dense = (x.numel() for name, x in subject.ours.named_parameters() if ".embedding_bags." not in name)
    num_dense = sum(dense)
    return ours(subject, batch_size), num_dense


def run(loop: TrainingLoop, direction: str) -> None:
    """Takes an optimizer step, or makes a forward pass."""
    loop.model.train(direction == "training")
    if loop.model.training:
        loop.take_step()
        return
    batch = next(iter(loop.train_batches))
    with torch.no_grad():
        loop.model.module.model(batch.dense_features, batch.sparse_features)


def main() -> None:
    arguments = record.parse("model_costs", __doc__)
    batch_size, num_rows, repeats = (64, 100, 2) if arguments.quick else (4096, 50_000, 9)
    with record.Results(arguments.results) as results, process_group(torch.device("cpu")):
        made = {name: make(name, batch_size, num_rows) for name in CANDIDATES}
        turns = {(way, name): partial(run, loop, way) for way in DIRECTIONS for name, (loop, _) in made.items()}
        times = record.in_turns(turns, arguments.repeats or repeats, record.processor_seconds, warm_up=1)
        for (way, name), own in times.items():
            bases = {f"to_{base}": round(record.ratio(own, times[way, base]), 2) for base in BASES}
            about = {"direction": way, "model": name, "parameters": round(made[name][1] / 1e3)}
            results.add({**about, **bases, **record.spread([1e3 * x for x in own], "ms")})
            print(way, name, *bases.values(), flush=True)


if __name__ == "__main__":
    main()
