"""LibMTL's weightings of given losses and gradients, recorded: ``python -m tests.peers.libmtl_reference FILE``.

Its packages import what is not there, so each weighting is imported without them; `torch.symeig`, which
Aligned-MTL calls, is now `torch.linalg.eigh`. Losses and gradients are handed to it where it would take them from a
model. The release has no FAMO and no Aligned-MTL; its repository has.
"""

import importlib
import importlib.util
import json
import random
import sys
import types
from pathlib import Path

import numpy as np
import torch

ALL = ("UW", "DWA", "PCGrad", "MGDA", "CAGrad", "GradNorm", "FAMO", "Aligned_MTL")
NUM_TASKS, NUM_BATCHES = 3, 8


def weightings(folder: Path) -> dict:
    """LibMTL's classes by name, those that there are."""
    for name, path in (("LibMTL", folder), ("LibMTL.weighting", folder / "weighting")):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(path)]
    torch.symeig = lambda matrix, eigenvectors: torch.linalg.eigh(matrix)
    there = [name for name in ALL if (folder / "weighting" / f"{name}.py").exists()]
    return {name: getattr(importlib.import_module(f"LibMTL.weighting.{name}"), name) for name in there}


def given(kind, gradients):
    """A weighting that takes these gradients, and keeps the direction that it makes of them."""

    class Given(kind):
        def _compute_grad_dim(self):
            self.grad_dim = gradients.shape[1]

        def _compute_grad(self, losses, mode, rep_grad=False):  # as LibMTL has it
            return gradients

        def _reset_grad(self, new_grads):
            self.direction = new_grads

    made = Given()
    made.task_num, made.device, made.rep_grad, made.epoch = NUM_TASKS, torch.device("cpu"), False, 2
    made.init_param()
    return made


def in_order(batch):
    """Replaces `random.shuffle`: the orders of this number of batch, the task itself at the end."""
    draw, task = random.Random(batch), iter(range(NUM_TASKS))

    def shuffle(places):
        own = next(task)
        places[:] = [*draw.sample([place for place in places if place != own], NUM_TASKS - 1), own]

    return shuffle


def record(kinds: dict) -> dict:
    rng = np.random.default_rng(0)
    losses = rng.uniform(0.1, 1.0, (NUM_BATCHES, NUM_TASKS))
    gradients = rng.normal(size=(NUM_BATCHES, NUM_TASKS, 10)) + 0.2
    found: dict = {}
    torch.set_default_dtype(torch.float64)
    for name, kind in kinds.items():
        of_batches, kept = [], given(kind, torch.from_numpy(gradients[0]))
        for number in range(NUM_BATCHES):
            of_batch = torch.from_numpy(losses[number]).requires_grad_()
            method = kept if name == "FAMO" else given(kind, torch.from_numpy(gradients[number]))
            method.train_loss_buffer = losses[max(number - 2, 0) :].T.copy()
            if name == "FAMO":
                method.backward(of_batch, FAMO_w_lr=0.1, FAMO_w_gamma=1e-3)
                of_batches.append(of_batch.grad.tolist())
                method.update_w(torch.from_numpy(losses[min(number + 1, NUM_BATCHES - 1)]))
            elif name == "UW":
                method.loss_scale.data = torch.from_numpy(losses[0])
                method.backward(of_batch)
                of_batches.append([of_batch.grad.tolist(), method.loss_scale.grad.tolist()])
            elif name == "DWA":
                weights = method.backward(of_batch, T=0.5) if number >= 2 else np.ones(NUM_TASKS)
                of_batches.append(weights.tolist())
            elif name == "GradNorm":
                method.train_loss_buffer = losses[:1].T.copy()
                method.backward(of_batch, alpha=1.5)
                of_batches.append(method.loss_scale.grad.tolist())
            else:
                if name == "PCGrad":
                    sys.modules[kind.__module__].random = types.SimpleNamespace(shuffle=in_order(number))
                method.backward(of_batch, mgda_gn="none", calpha=0.4, rescale=1)
                of_batches.append(method.direction.tolist())
        found[name] = of_batches
    return {"losses": losses.tolist(), "gradients": gradients.tolist(), "found": found}


if __name__ == "__main__":
    folder = (
        Path(sys.argv[2]) if sys.argv[2:] else Path(importlib.util.find_spec("LibMTL").submodule_search_locations[0])
    )
    Path(sys.argv[1]).write_text(json.dumps(record(weightings(folder))))
