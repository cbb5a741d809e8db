"""Sharded over two processes equals unsharded in one."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torchrec import EmbeddingBagCollection

from tests import processes
from tests.support import MODELS, batch, take, train_model
from torchrec_mtl.modules import DynamicSelector
from torchrec_mtl.training.checkpoint import load_weights, save_weights
from torchrec_mtl.training.config import OptimizerConfig
from torchrec_mtl.training.distributed import distribute

STEPS, SIZE = 5, 16
OPTIMIZERS = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "adam": torch.optim.Adam}


def build(name: str) -> nn.Module:
    """Without dropout, whose masks are a rank's own, and with tables of unequal dimensions."""
    options = {"bpcm": {"message_dropout": 0.0, "embedding_dim": 4}, "tafe": {"embedding_dim": 4}}.get(name, {})
    # tables of a multiple of four columns, which is what sharded tables have
    return train_model(name, embedding_dims=(4, 8, 4, 4), **options)


def equals_unsharded(name: str, table_optimizer: str, folder: str) -> None:
    """Forward, gradients, and parameters after some steps, starting from the same weights."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    config = OptimizerConfig(learning_rate=0.01, table_optimizer=table_optimizer, table_learning_rate=0.05)
    sharded, optimizer = distribute(build(name), config, torch.device("cpu"))
    whole = build(name)
    save_weights(sharded, Path(folder) / "start")
    load_weights(whole, Path(folder) / "start")

    collections = [m for m in whole.modules() if isinstance(m, EmbeddingBagCollection)]
    of_tables = {id(p) for collection in collections for p in collection.parameters()}
    dense = [p for p in whole.parameters() if id(p) not in of_tables]
    tables = [p for p in whole.parameters() if id(p) in of_tables]
    options = {"eps": 1e-8} if table_optimizer == "adagrad" else {}
    reference = [
        torch.optim.AdamW(dense, lr=0.01, weight_decay=0.0),
        OPTIMIZERS[table_optimizer](tables, lr=0.05, **options),
    ]
    for step in range(STEPS):
        rows = batch(SIZE, seed=step, weighted=step % 2 == 1)
        own = take(rows, range(rank, SIZE, world_size))
        optimizer.zero_grad()
        loss, (_, logits, _) = sharded(own)
        loss.backward()
        for each in reference:
            each.zero_grad()
        expected_loss, (_, expected, _) = whole(rows)
        expected_loss.backward()
        torch.testing.assert_close(logits, expected[rank::world_size], rtol=1e-4, atol=1e-5)
        gradients = {n: p.grad for n, p in sharded.named_parameters() if p.grad is not None}
        for parameter_name, parameter in whole.named_parameters():
            if id(parameter) not in of_tables:
                torch.testing.assert_close(gradients[parameter_name], parameter.grad, rtol=1e-4, atol=1e-6)
        optimizer.step()
        for each in reference:
            each.step()

    save_weights(sharded, Path(folder) / "end")
    gathered = build(name)
    load_weights(gathered, Path(folder) / "end")
    expected_state = whole.state_dict()
    for parameter_name, actual in gathered.state_dict().items():
        expected = expected_state[parameter_name]
        torch.testing.assert_close(
            actual, expected, rtol=1e-4, atol=2e-5, msg=lambda text, n=parameter_name: f"{n}: {text}"
        )
    for selector in (m for m in gathered.modules() if isinstance(m, DynamicSelector)):
        assert selector.step == STEPS


def all_models(table_optimizers: list[str], folder: str) -> None:
    for table_optimizer in table_optimizers:
        for name in MODELS:
            own = Path(folder) / f"{name}-{table_optimizer}"
            own.mkdir(exist_ok=True)
            torch.manual_seed(0)
            equals_unsharded(name, table_optimizer, str(own))


@pytest.mark.slow
def test_sharded_equals_unsharded(tmp_path):
    """SGD and Adagrad on tables that are split, Adam on replicated ones."""
    processes.run(all_models, 2, ["sgd", "adagrad", "adam"], str(tmp_path))
