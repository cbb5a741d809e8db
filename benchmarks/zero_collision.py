"""Measures what ids without a vocabulary cost: ``python -m benchmarks.zero_collision``.

Twelve fields of one id, batches of 4096, tables of 102,400 rows of 16 columns, one thread, one process. Ids are drawn
from 200,000 a field, the small ones more often, so rows change hands all the time. A training step of Shared-Bottom
with plain tables is compared with the same step where ids get rows every 1, 10 and 100 batches; the assignment of rows
alone with TorchRec's; and the rows that changed since a checkpoint with a checkpoint of everything. Processor time,
over as many steps as an interval has. Before anything is timed, every id of a batch must have a row. Ten minutes.
"""

import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torchrec import EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHManagedCollisionModule,
)

from benchmarks import record
from torchrec_mtl.data import ANY_ID, Field, MultiTaskBatch, Schema
from torchrec_mtl.jobs.build import build_model
from torchrec_mtl.jobs.run_config import RunConfig
from torchrec_mtl.modules import ZeroCollisionEmbeddingBagCollection
from torchrec_mtl.modules.id_hash import hash_ids
from torchrec_mtl.modules.row_assignment import RowAssignment
from torchrec_mtl.modules.zero_collision import hashed_features
from torchrec_mtl.systems import SYSTEMS
from torchrec_mtl.tasks import TaskChain
from torchrec_mtl.training.checkpoint import Checkpointer, checkpoints, save_changed_rows
from torchrec_mtl.training.config import TrainingConfig, ZchConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.process_group import process_group

CPU, PLAIN = torch.device("cpu"), "plain tables"
NUM_FIELDS, NUM_BATCHES, REPEATS = 12, 100, 5
SIZES, QUICK_SIZES = (4096, 102_400, 200_000), (64, 640, 2_000)  # batch, rows of a table, ids of a field
WAYS = (("lfu", 1), ("lfu", 10), ("lfu", 100), ("lru", 10), ("distance_lfu", 10))
POLICIES = {"lfu": LFU_EvictionPolicy, "lru": LRU_EvictionPolicy, "distance_lfu": DistanceLFU_EvictionPolicy}
NAMES = [f"f{number}" for number in range(NUM_FIELDS)]


def batches(size: int, num_ids: int) -> list[MultiTaskBatch]:
    """Batches with the ids as they are."""
    made = []
    for seed in range(NUM_BATCHES):
        generator = torch.Generator().manual_seed(seed)
        ids = (torch.rand(NUM_FIELDS * size, generator=generator) ** 3 * num_ids).long()
        sparse = KeyedJaggedTensor(NAMES, ids, lengths=torch.ones_like(ids), stride=size)
        labels = (torch.rand(size, 2, generator=generator) < 0.2).float().cumprod(1)
        made.append(MultiTaskBatch(torch.empty(size, 0), sparse, labels))
    return made


def distributed(zch: ZchConfig, num_rows: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Shared-Bottom with its optimizer."""
    fields = [Field(name, ANY_ID if name in zch.fields else num_rows) for name in NAMES]
    schema = Schema("ids", fields, TaskChain(["click", "buy"]))
    config = RunConfig(SYSTEMS["shared_bottom"], 16, zch=zch)
    return distribute(build_model(config, schema, CPU), TrainingConfig(), CPU)


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch: MultiTaskBatch) -> None:
    optimizer.zero_grad()
    model(batch)[0].backward()
    optimizer.step()


def taking(function: Callable[[MultiTaskBatch], object], made: list[MultiTaskBatch], calls: int) -> Callable[[], None]:
    """Returns what calls ``function`` so many times, each time with the next batch."""
    endless: Iterator[MultiTaskBatch] = itertools.cycle(made)

    def take() -> None:
        for batch in itertools.islice(endless, calls):
            function(batch)

    return take


def plain_ids(made: list[MultiTaskBatch], num_rows: int) -> list[MultiTaskBatch]:
    """The same batches for tables of so many rows."""
    plain = []
    for batch in made:
        sparse = batch.sparse_features
        ids = KeyedJaggedTensor(NAMES, sparse.values() % num_rows, lengths=sparse.lengths(), stride=sparse.stride())
        plain.append(MultiTaskBatch(batch.dense_features, ids, batch.labels))
    return plain


def check(model: torch.nn.Module, batch: MultiTaskBatch) -> None:
    """Stops unless every id of a batch that was just trained on has a row, which no other id has."""
    for rows in (module for module in model.modules() if isinstance(module, RowAssignment)):
        ids = hash_ids(batch.sparse_features[rows.name.removeprefix("t_")].values().unique())
        if not torch.isin(ids, rows.hashed_ids).all() or rows.rows_of(ids).unique().numel() < len(ids):
            sys.exit(f"error: an id of {rows.name} has no row, so nothing is timed")


def steps(made: list[MultiTaskBatch], num_rows: int, repeats: int) -> list[record.Row]:
    """Milliseconds of a training step."""
    calls, candidates = {PLAIN: 20}, {}
    model, optimizer = distributed(ZchConfig(), num_rows)
    plain = plain_ids(made, num_rows)
    candidates[PLAIN] = taking(lambda batch: step(model, optimizer, batch), plain, calls[PLAIN])
    for eviction, interval in WAYS:
        zch = ZchConfig(fields=NAMES, num_rows=num_rows, eviction=eviction, interval=interval)
        own = distributed(zch, num_rows)
        if interval == 1:
            step(*own, made[0])
            check(own[0], made[0])
        name = f"{eviction}, interval {interval}"
        calls[name] = max(20, interval)
        candidates[name] = taking(lambda batch, own=own: step(*own, batch), made, calls[name])
    return rows("step", record.in_turns(candidates, repeats, record.processor_seconds), calls)


def rows(what: str, times: dict[str, list[float]], calls: dict[str, int]) -> list[record.Row]:
    each = {name: [1e3 * taken / calls[name] for taken in of_rounds] for name, of_rounds in times.items()}
    base = next(iter(each.values()))
    return [
        {"what": what, "way": name, "times_first": round(record.ratio(own, base), 2), **record.spread(own, "ms", 2)}
        for name, own in each.items()
    ]


def assign(collection: ManagedCollisionCollection, hashes: bool, batch: MultiTaskBatch) -> None:
    """Gives rows to ids and looks them up; TorchRec's ids are not hashed."""
    collection(hashed_features(batch.sparse_features, NAMES) if hashes else batch.sparse_features)
    collection.evict()


def assignments(made: list[MultiTaskBatch], num_rows: int, repeats: int) -> list[record.Row]:
    """Milliseconds for counting a batch's ids, giving them rows and replacing them; and TorchRec's for the same."""
    configs = [
        EmbeddingBagConfig(name=f"t_{name}", embedding_dim=4, num_embeddings=num_rows, feature_names=[name])
        for name in NAMES
    ]
    found = []
    for eviction, interval in WAYS:
        ours = ZeroCollisionEmbeddingBagCollection(configs, eviction=eviction, interval=interval)
        theirs = {
            config.name: MCHManagedCollisionModule(num_rows, CPU, POLICIES[eviction](), interval) for config in configs
        }
        calls = dict.fromkeys(("ours", "TorchRec"), max(20, interval))
        candidates = {
            "ours": taking(partial(assign, ours._managed_collision_collection, True), made, calls["ours"]),
            "TorchRec": taking(
                partial(assign, ManagedCollisionCollection(theirs, configs), False), made, calls["ours"]
            ),
        }
        times = record.in_turns(candidates, repeats, record.processor_seconds)
        of_way = rows("assignment", times, calls)
        found += [{**row, "way": f"{eviction}, interval {interval}, {row['way']}"} for row in of_way]
    return found


def changes(made: list[MultiTaskBatch], num_rows: int, repeats: int) -> list[record.Row]:
    """Milliseconds for a checkpoint, and for the rows that changed in the ten steps after it."""
    own = distributed(ZchConfig(fields=NAMES, num_rows=num_rows), num_rows)
    taking(lambda batch: step(*own, batch), made, 20)()
    times: dict[str, list[float]] = {"checkpoint": [], "changed rows": []}
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            group = dist.new_group(backend="gloo")
            checkpointer = Checkpointer(Path(folder, "checkpoints"), group)
            save = partial(checkpointer.save, 1, *own, {}, None)
            times["checkpoint"].append(record.processor_seconds(save))
            (checkpoint,) = checkpoints(checkpointer.directory)
            taking(lambda batch: step(*own, batch), made, 10)()
            save = partial(save_changed_rows, own[0], checkpoint, Path(folder, "changed"), group)
            times["changed rows"].append(record.processor_seconds(save))
    return rows("since a checkpoint", times, dict.fromkeys(times, 1))


def main() -> None:
    arguments = record.parse("zero_collision", __doc__)
    size, num_rows, num_ids = QUICK_SIZES if arguments.quick else SIZES
    repeats = arguments.repeats or (1 if arguments.quick else REPEATS)
    with record.Results(arguments.results) as results, process_group(CPU):
        made = batches(size, num_ids)
        about = {"batch_size": size, "rows": num_rows}
        for part in (steps, assignments, changes):
            results.add(*({**about, **row} for row in part(made, num_rows, repeats)))


if __name__ == "__main__":
    main()
