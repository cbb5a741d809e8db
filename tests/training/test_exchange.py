"""A 16-bit exchange rounds embeddings and gradients to the precision of its type, and changes nothing else."""

import pytest
import torch
import torch.distributed as dist

from tests import processes
from tests.support import batch
from tests.training.test_distributed import CPU, SIZE, build_on_shared_tables, take
from torchrec_mtl.errors import InputError
from torchrec_mtl.training.config import SHARDINGS, TableConfig, TrainingConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.process_group import process_group

ROWS = 2**20  # of a step of which `batch` is a part: each counts so little in the mean loss
HALF = 2.0**-11  # relative error of rounding to fp16


def tables(model):
    """All tables, on the first rank: the planner may place them elsewhere where less is sent."""
    found = []
    for _, sharded in sorted(
        (name, each) for name, each in model.state_dict().items() if hasattr(each, "local_shards")
    ):
        whole = torch.zeros(sharded.metadata().size)
        sharded.gather(0, whole if dist.get_rank() == 0 else None)
        found.append(whole.flatten())
    return torch.cat(found)


def a_step(precision, sharding):
    """Logits, and what the step adds to all tables: gradients of 1e-7, times 1e5."""
    torch.manual_seed(0)
    table = TableConfig("sgd", 1e5, sharding)
    config = TrainingConfig(batch_size=ROWS, exchange_precision=precision, table=table)
    model, _ = distribute(build_on_shared_tables(), config, CPU)
    rows = take(batch(SIZE, seed=0), range(dist.get_rank(), SIZE, dist.get_world_size()))
    rows.weights = torch.full_like(rows.labels, SIZE / ROWS)
    before = tables(model)
    loss, (_, logits, _) = model(rows)
    loss.backward()
    return logits, tables(model) - before


def every_sharding(shardings):
    for sharding in shardings:
        (logits, update), (rounded_logits, rounded_update) = (a_step(each, sharding) for each in ("fp32", "fp16"))
        error = (rounded_update - update).norm() / update.norm()
        if dist.get_world_size() == 1:  # which sends nothing
            assert torch.equal(rounded_logits, logits), sharding
            assert error == 0, sharding
        else:
            assert 0 < (rounded_logits - logits).norm() / logits.norm() < 2 * HALF, sharding
            assert dist.get_rank() or HALF / 100 < error < 4 * HALF, (sharding, error)


def test_a_step_of_two_ranks_is_that_of_an_exact_exchange_but_for_rounding():
    processes.run(every_sharding, 2, [kind for kind in SHARDINGS if kind not in ("auto", "data_parallel")])


def test_one_rank_rounds_nothing():
    with process_group(CPU):
        every_sharding(["row_wise", "table_wise"])


def test_what_a_cpu_cannot_send_is_refused():
    config = TrainingConfig(exchange_precision="bf16")
    message = r"`exchange_precision` \(='bf16'\) must be 'fp32' or 'fp16' on a CPU, whose ranks cannot send bf16"
    with process_group(CPU), pytest.raises(InputError, match=message):
        distribute(build_on_shared_tables(), config, CPU)
