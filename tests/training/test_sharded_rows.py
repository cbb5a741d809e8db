"""Tables whose rows are not pooled, sharded: what training makes of them, by the definition of the optimizers."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec import EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor

from tests import processes
from tests.training.pooled import NAMES
from tests.training.test_distributed import whole_weights
from torchrec_mtl.errors import InputError
from torchrec_mtl.ops.embedding_bag import reference
from torchrec_mtl.training import sharded_tables
from torchrec_mtl.training.config import TableConfig, TrainingConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.process_group import process_group
from torchrec_mtl.training.sharding import plan_sharding
from torchrec_mtl.training.table_gate import TableGate

CPU = torch.device("cpu")
RATE, SIZE, DIM, STEPS = 0.1, 11, 8, 3
KEYS = ["seen", "other", "category", "item"]  # not in the order of the tables
ROWS = {"t_item": (13, ["item", "seen"]), "t_category": (7, ["category"])}
FUSED = ["sgd", "adagrad", "rowwise_adagrad", "sparse_adam", "rowwise_adam"]


def tables() -> EmbeddingCollection:
    """One of two features, one of one."""
    configs = [
        EmbeddingConfig(name=name, num_embeddings=rows, embedding_dim=DIM, feature_names=features)
        for name, (rows, features) in ROWS.items()
    ]
    for config in configs:
        config.init_fn = nn.init.normal_
    return EmbeddingCollection(tables=configs, device=torch.device("meta"))


class Net(nn.Module):
    """The rows of all features, feature by feature."""

    def __init__(self) -> None:
        super().__init__()
        self.tables, self.scale = tables(), nn.Parameter(torch.ones(()))

    def forward(self, features: KeyedJaggedTensor) -> list[Tensor]:
        rows = self.tables(features)
        return [rows[key].values() for key in ("item", "seen", "category")]


def batch(step: int, samples: slice = slice(None)) -> tuple[KeyedJaggedTensor, list[Tensor]]:
    """0 to 3 ids a sample, often the same and none at all in step 1; and the gradient of each row."""
    generator = torch.Generator().manual_seed(step)
    ids, lengths, gradients = [], [], {}
    for key in KEYS:
        of_key = torch.randint(0, 4 if step != 1 or key == "item" else 1, (SIZE,), generator=generator)
        values = torch.randint(0, 7, (int(of_key.sum()),), generator=generator)
        parts = list(values.split(of_key.tolist()))[samples]
        of_rows = torch.randn(len(values), DIM, generator=generator).split(of_key.tolist())[samples]
        ids, lengths, gradients[key] = ids + parts, [*lengths, of_key[samples]], torch.cat(of_rows)
    features = KeyedJaggedTensor.from_lengths_sync(KEYS, torch.cat(ids), torch.cat(lengths))
    return features, [gradients[key] for key in ("item", "seen", "category")]


def train(model: nn.Module, rank: int = 0, world_size: int = 1) -> None:
    for step in range(1, STEPS + 1):
        features, gradients = batch(step, slice(rank, None, world_size))
        rows = model(features)
        sum((each * g).sum() for each, g in zip(rows, gradients, strict=True)).mul(world_size).backward()


def expected(weights: dict[str, Tensor], optimizer: str) -> dict[str, Tensor]:
    found = {}
    for name, (_, features) in ROWS.items():
        weight = weights[name].double()
        whole, of_row = torch.zeros_like(weight), torch.zeros_like(weight[:, 0])
        states = {"sgd": (), "adagrad": ([whole],), "rowwise_adagrad": ([of_row],)}
        states |= {"sparse_adam": ([whole], [copy.deepcopy(whole)]), "rowwise_adam": ([whole], [of_row])}
        for step in range(1, STEPS + 1):
            sparse, gradients = batch(step)
            of_key = dict(zip(("item", "seen", "category"), gradients, strict=True))
            ids = torch.cat([sparse[key].values() for key in features])
            gradient = torch.cat([of_key[key] for key in features]).double()
            bags = [0], [0], [False], ids, torch.arange(len(ids) + 1), len(ids)
            kind = NAMES[optimizer]
            reference.update([weight], states[optimizer], *bags, gradient, kind, learning_rate=RATE, step=step)
        found[name] = weight
    return found


def check(optimizer: str, sharding: str) -> None:
    config = TrainingConfig(table=TableConfig(optimizer, RATE, sharding))
    model, _ = distribute(Net(), config, CPU)
    start = {name.split(".")[-2]: w.clone() for name, w in whole_weights(model).items() if "embeddings" in name}
    train(model, dist.get_rank(), dist.get_world_size())
    after = {name.split(".")[-2]: w for name, w in whole_weights(model).items() if "embeddings" in name}
    assert after.keys() == ROWS.keys()
    for name, weight in expected(start, optimizer).items():
        torch.testing.assert_close(after[name], weight.float(), atol=1e-5, rtol=1e-5)
        assert not after[name].equal(start[name])


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("optimizer", FUSED)
@pytest.mark.parametrize("sharding", ["auto", "row_wise"])
def test_one_rank(optimizer, sharding):
    with process_group(CPU):
        check(optimizer, sharding)


@pytest.mark.parametrize("optimizer", FUSED[:3])
def test_one_rank_with_fbgemms_kernels(optimizer, monkeypatch):
    monkeypatch.setattr(sharded_tables.library, "load", lambda: False)
    with process_group(CPU):
        check(optimizer, "table_wise")


def _two_ranks() -> None:
    for optimizer in FUSED:
        for sharding in ("table_wise", "row_wise"):
            check(optimizer, sharding)
    for optimizer in ("sgd", "adagrad", "sparse_adam"):  # others have a state for each shard's row
        check(optimizer, "column_wise")


@pytest.mark.usefixtures("kernel")
def test_two_ranks():
    processes.run(_two_ranks, 2)


def test_a_gate_keeps_the_backward_pass_out():
    with process_group(CPU):
        model, _ = distribute(Net(), TrainingConfig(table=TableConfig("sgd", RATE)), CPU)
        gate, before = TableGate(model), {name: w.clone() for name, w in whole_weights(model).items()}
        with gate.held():
            loss = sum(rows.sum() for rows in model(batch(2)[0]))
        loss.backward()
        assert len(gate.gradients()) == 3
        assert all(w.equal(before[name]) for name, w in whole_weights(model).items())
        gate.open()
        assert not any(w.equal(before[name]) for name, w in whole_weights(model).items() if "embeddings" in name)


def test_replicated_tables_are_in_no_plan():
    with process_group(CPU):
        model = nn.ModuleList([Net(), nn.Module()])
        config = TrainingConfig(table=TableConfig("adam", RATE))
        assert plan_sharding(model, config, CPU).plan == {}
        net, _ = distribute(Net(), config, CPU)
        assert isinstance(net.module.tables, EmbeddingCollection)


@pytest.mark.parametrize(
    ("of_table", "message"),
    [
        ({"optimizer": "adam"}, "must all be replicated, or none of them"),
        ({"sharding": "grid_shard"}, r"`sharding` \(='grid_shard'\) of t_item must be one of .*column_wise"),
    ],
)
def test_what_rows_cannot_be(of_table, message):
    with process_group(CPU), pytest.raises(InputError, match=message):
        plan_sharding(Net(), TrainingConfig(tables={"t_item": of_table}), CPU)
