"""Every system on fixed weights and batches in float64: its logits, its loss, its weights after three steps."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tests.golden.names import old_name
from tests.support import TASKS, batch, feature_arch
from torchrec_mtl import MultiTaskTrain
from torchrec_mtl.modules import advance_schedules
from torchrec_mtl.systems import SYSTEMS

VALUES = Path(__file__).with_name("values.npz")
TASK_WEIGHTS = (1.0, 2.0, 0.5)
STEPS = 3
DROPOUT = {"without_dropout": 0.0, "with_dropout": 0.3}
PER_FIELD = ("bpcm", "tafe")  # these project fields of another dimension
HAS_MESSAGES = "bpcm"


def build(system: str, case: str) -> nn.Module:
    """The system in training mode, with its loss; fields of two dimensions where there is dropout."""
    record, dropout = SYSTEMS[system], DROPOUT[case]
    mixed = bool(dropout)
    sizes = {**record.small, **record.model_args, "dropout": dropout}
    if record.base == HAS_MESSAGES:
        sizes["message_dropout"] = dropout
    if mixed and record.base in PER_FIELD:
        sizes["embedding_dim"] = 4
    model = record.model(feature_arch((4, 8, 4, 4) if mixed else (4, 4, 4, 4)), TASKS, **sizes)
    return MultiTaskTrain(model, record.loss(TASKS, **record.loss_args, task_weights=TASK_WEIGHTS)).double()


def _drawn(name: str, shape: torch.Size) -> Tensor:
    """Values that only depend on the parameter's name."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    values = np.random.default_rng(seed).normal(size=tuple(shape))
    return torch.from_numpy(values * 0.5 + name.endswith(("norm_weight", "norm.weight")))


def start(model: nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_drawn(old_name(name), parameter.shape))


@contextmanager
def fixed_masks(model: nn.Module) -> Iterator[None]:
    """Every call of a dropout drops what its place in the forward pass says."""
    calls = [0]

    def drop(module: nn.Dropout, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        calls[0] += 1
        kept = np.random.default_rng(calls[0]).random(tuple(inputs[0].shape)) >= module.p
        return inputs[0] * torch.from_numpy(kept) / (1 - module.p)

    hooks = [m.register_forward_hook(drop) for m in model.modules() if isinstance(m, nn.Dropout) and m.p]
    yield
    for hook in hooks:
        hook.remove()


def run(system: str, case: str) -> dict[str, np.ndarray]:
    """``logits`` and ``loss`` of each step before it is taken, then every weight."""
    model = build(system, case)
    start(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    logits, losses = [], []
    for step in range(STEPS):
        rows = batch(12, seed=step, weighted=True)
        rows.dense_features, rows.labels = rows.dense_features.double(), rows.labels.double()
        assert rows.weights is not None
        rows.weights = rows.weights.double()
        with fixed_masks(model):
            loss, (_, of_step, _) = model(rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        advance_schedules(model)
        logits.append(of_step.numpy())
        losses.append(loss.item())
    weights = {old_name(name): p.detach().numpy() for name, p in model.named_parameters()}
    return {"logits": np.stack(logits), "loss": np.array(losses), **weights}


def record() -> None:
    """Writes what the code gives now as what it must give."""
    values = {}
    for system in SYSTEMS:
        for case in DROPOUT:
            values |= {f"{system}/{case}/{name}": value for name, value in run(system, case).items()}
    np.savez_compressed(VALUES, **values)


if __name__ == "__main__":
    record()
