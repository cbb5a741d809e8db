"""Our models with the weights of other libraries' give what those give.

It installs the libraries, so it runs only where ``TORCHREC_MTL_PEERS`` is set.
"""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import record
from tests.peers.environment import python_with
from tests.peers.recording import SIZES, Layers
from torchrec_mtl import TaskChain, TaskForest, models
from torchrec_mtl.modules import Experts

pytestmark = pytest.mark.skipif("TORCHREC_MTL_PEERS" not in os.environ, reason="set TORCHREC_MTL_PEERS=1")

CASES = [
    *(("torch_rechub", model) for model in ("shared_bottom", "mmoe", "ple", "esmm", "aitm")),
    *(("deepctr_torch", model) for model in ("shared_bottom", "mmoe", "ple", "esmm")),
]


EXPERTS = {"expert_layer_sizes": SIZES.expert_sizes, "tower_layer_sizes": SIZES.tower_sizes}


def chain(num_tasks: int) -> TaskForest:
    return TaskChain([f"task_{t}" for t in range(num_tasks)])


def fill(module: nn.Module, of_peer: Layers) -> None:
    """Copies the peer's layers into every linear layer inside, in order."""
    ours = [m for m in module.modules() if isinstance(m, nn.Linear)]
    for linear, (weight, bias) in zip(ours, of_peer, strict=True):
        linear.load_state_dict({"weight": weight, "bias": bias})


def fill_all(modules: nn.ModuleList, of_peer: list[Layers]) -> None:
    for module, module_layers in zip(modules, of_peer, strict=True):
        fill(module, module_layers)


def fill_experts(experts: Experts, of_peer: list[Layers]) -> None:
    by_layer = list(zip(*of_peer, strict=True))
    for ours, position in ((experts.weights, 0), (experts.biases, 1)):
        for parameter, layer in zip(ours, by_layer, strict=True):
            parameter.copy_(torch.stack([of_expert[position] for of_expert in layer]))


def shared_bottom(in_features: int, peer: dict) -> nn.Module:
    sizes = {"bottom_layer_sizes": SIZES.expert_sizes, "tower_layer_sizes": SIZES.tower_sizes}
    arch = models.SharedBottomArch(in_features, len(SIZES.tasks), **sizes).double()
    fill(arch.bottom, peer["bottom"])
    return arch


def mmoe(in_features: int, peer: dict) -> nn.Module:
    arch = models.MMoEArch(in_features, len(SIZES.tasks), num_experts=SIZES.num_experts, **EXPERTS).double()
    fill_experts(arch.mixture.experts, peer["experts"])
    arch.mixture.gate.linear.load_state_dict({"weight": torch.cat(peer["gates"])})
    return arch


def ple(in_features: int, peer: dict) -> nn.Module:
    numbers = dict.fromkeys(("num_task_experts", "num_shared_experts"), SIZES.num_experts // 2)
    arch = models.PLEArch(in_features, len(SIZES.tasks), num_layers=2, **numbers, **EXPERTS).double()
    for layer, of_peer in zip(arch.layers, peer["layers"], strict=True):
        fill_experts(layer.shared_experts, of_peer["shared_experts"])
        for experts, of_task in zip(layer.task_experts, of_peer["task_experts"], strict=True):
            fill_experts(experts, of_task)
        for gate, weight in zip(layer.gates, of_peer["gates"], strict=True):
            gate.linear.load_state_dict({"weight": weight})
    return arch


def esmm(in_features: int, peer: dict) -> nn.Module:
    return models.ESMMArch(in_features, chain(len(peer["towers"])), tower_layer_sizes=SIZES.whole_tower_sizes).double()


def aitm(in_features: int, peer: dict) -> nn.Module:
    tasks = chain(len(SIZES.tasks))
    arch = models.AITMArch(in_features, tasks, tower_layer_sizes=SIZES.whole_tower_sizes).double()
    fill_all(arch.representations, peer["representations"])
    fill_all(arch.information, peer["information"])
    arch.transfer.load_state_dict({f"{name}.weight": weight for name, weight in peer["transfer"].items()})
    return arch


ARCHS = {"shared_bottom": shared_bottom, "mmoe": mmoe, "ple": ple, "esmm": esmm, "aitm": aitm}


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of recordings by peer."""
    folders = {}
    for peer in dict(CASES):
        folders[peer] = tmp_path_factory.mktemp(peer)
        command = [python_with(peer), "-m", f"tests.peers.{peer}_reference", folders[peer]]
        subprocess.run(command, check=True, cwd=record.ROOT)
    return folders


@pytest.mark.parametrize(("peer", "model"), CASES)
def test_the_peers_weights_give_the_peers_outputs(recordings: dict[str, Path], peer: str, model: str) -> None:
    recording = torch.load(recordings[peer] / f"{model}.pt")
    embeddings, probabilities = recording["embeddings"], recording["probabilities"]
    assert (probabilities.logit().std(0) > 0.1).all()  # else there is nothing to compare
    with torch.no_grad():
        arch = ARCHS[model](embeddings.shape[1], recording["parameters"])
        fill_all(arch.towers.towers, recording["parameters"]["towers"])
        torch.testing.assert_close(arch(embeddings).sigmoid(), probabilities, rtol=1e-10, atol=1e-12)
