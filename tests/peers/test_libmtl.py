"""Our balancing of given losses and gradients is LibMTL's.

Its values are recorded from its repository at commit 4336804847; where ``TORCHREC_MTL_PEERS`` is set, its release is
installed and records those of its methods anew.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import record
from tests.peers.environment import python_with
from tests.support import TASKS
from torchrec_mtl.training.balancing import BALANCINGS

RECORDED = Path(__file__).with_name("recorded") / "libmtl.json"
TENSOR = torch.float64


def weigh(method, losses, gradients):
    found = method(torch.tensor(losses, dtype=TENSOR), torch.from_numpy(gradients @ gradients.T))
    return found.detach().to(TENSOR).numpy()


def uncertainty(losses, gradients):
    """LibMTL has a regression's form for all tasks, half of a classification's."""
    method, of_batches = BALANCINGS["uncertainty"](TASKS).double(), []
    method.log_variances.data = torch.from_numpy(losses[0])
    for of_batch in losses:
        method.zero_grad()
        halves = torch.from_numpy(of_batch / 2)
        weights = method(halves, halves[:0])
        ((weights * halves).sum() + method.penalty()).backward()
        of_batches.append([(weights / 2).tolist(), method.log_variances.grad.tolist()])
    return of_batches


def dwa(losses, gradients):
    method = BALANCINGS["dwa"](TASKS, interval=1, temperature=0.5)
    return [weigh(method, *of_batch) for of_batch in zip(losses, gradients, strict=True)]


def gradnorm(losses, gradients):
    """LibMTL trains the logits of a softmax; from equal weights, its gradient is ours less their mean."""
    of_batches = []
    for of_batch, gradient in zip(losses, gradients, strict=True):
        method = BALANCINGS["gradnorm"](TASKS)
        method.initial.copy_(torch.from_numpy(losses[0]))
        weigh(method, of_batch, gradient)
        slope = method.adam.first.numpy() / 0.1  # of the first step
        of_batches.append(slope - slope.mean())
    return of_batches


def famo(losses, gradients):
    """In LibMTL a step's losses after it are those of the same batch; here they are the next one's in both."""
    method = BALANCINGS["famo"](TASKS, learning_rate=0.1, decay=1e-3)
    return [weigh(method, *of_batch) for of_batch in zip(losses, gradients, strict=True)]


def direction(name, **arguments):
    def of_batches(losses, gradients):
        method = BALANCINGS[name](TASKS, **arguments)
        return [weigh(method, *of_batch) @ of_batch[1] for of_batch in zip(losses, gradients, strict=True)]

    return of_batches


OURS = {
    "UW": uncertainty,
    "DWA": dwa,
    "PCGrad": direction("pcgrad"),
    "MGDA": direction("mgda"),
    "CAGrad": direction("cagrad", c=0.4, rescale="square"),
    "GradNorm": gradnorm,
    "FAMO": famo,
    "Aligned_MTL": direction("aligned_mtl"),
}
# LibMTL adds 1e-8 to lengths and losses; its MGDA and CAGrad stop near the minimum
TOLERANCE = {"MGDA": 2e-2, "CAGrad": 2e-3, "FAMO": 1e-5, "PCGrad": 1e-6}


def compare(recorded, name):
    losses, gradients = np.array(recorded["losses"]), np.array(recorded["gradients"])
    tolerance = TOLERANCE.get(name, 1e-9)
    found, wanted = OURS[name](losses, gradients), recorded["found"][name]
    np.testing.assert_allclose(np.array(found), np.array(wanted), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", OURS)
def test_it_is_what_libmtl_made(name):
    compare(json.loads(RECORDED.read_text()), name)


@pytest.mark.skipif("TORCHREC_MTL_PEERS" not in os.environ, reason="set TORCHREC_MTL_PEERS=1")
def test_it_is_what_libmtl_makes(tmp_path):
    file = tmp_path / "libmtl.json"
    command = [python_with("libmtl"), "-W", "ignore", "-m", "tests.peers.libmtl_reference", file]
    subprocess.run(command, check=True, cwd=record.ROOT)
    recorded = json.loads(file.read_text())
    assert set(recorded["found"]) == {"UW", "DWA", "PCGrad", "MGDA", "CAGrad", "GradNorm"}
    for name in recorded["found"]:
        compare(recorded, name)
