"""TorchRec's 16-bit codecs round pooled embeddings, and change nothing else.

A step of TAFE amplifies that where a ReLU of a tower changes its sign: this is what docs/scaling.md says.
"""

import copy
import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor, KeyedTensor
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig
from torchrec.distributed.test_utils.model_input import ModelInput
from torchrec.modules.mlp import Perceptron

from tests import processes
from tests.torchrec.sparse_nn import CONTROL, TABLES, check_sharded_step, model_class, test_sharding
from torchrec_mtl.modules import SmoothStepSchedule

AS_IN_THE_PAPER = {
    "num_layers": 4,
    "num_inducing_points": 64,
    "tower_layer_sizes": (64, 32),
    "selector_layer_sizes": (64,),
    "schedule": SmoothStepSchedule(),
}


def _round_sums(collection: EmbeddingBagCollection, ranks: int) -> None:
    """Rounds pooled embeddings as the codec does: each rank's part of a sum, then the sum; gradients stay."""
    part = copy.deepcopy(collection)

    @torch.no_grad()
    def rounded(features: KeyedJaggedTensor) -> Tensor:
        total: Tensor | int = 0
        for rank in range(ranks):
            for name, table in collection.embedding_bags.items():
                rows = torch.arange(len(table.weight)) // math.ceil(len(table.weight) / ranks)
                part.embedding_bags[name].weight.copy_(table.weight * (rows == rank).unsqueeze(1))
            total = part(features).values().half() + total
        return total.float()

    def hook(_: nn.Module, inputs: tuple[KeyedJaggedTensor], output: KeyedTensor) -> KeyedTensor:
        error = (rounded(inputs[0]) - output.values()).detach()
        return KeyedTensor(output.keys(), output.length_per_key(), output.values() + error)

    collection.register_forward_hook(hook)


def _round_sums_of(model: nn.Module, ranks: int) -> nn.Module:
    for collection in [m for m in model.modules() if isinstance(m, EmbeddingBagCollection)]:
        _round_sums(collection, ranks)
    return model


def _whole_is_rounded(
    name: str, arguments: dict, ranks: int, sparse_device: torch.device | None = None, **options: object
) -> nn.Module:
    model = model_class(name, **arguments)(sparse_device=sparse_device, **options)
    return model if sparse_device else _round_sums_of(model, ranks)


def _check(names: list[str]) -> None:
    quantised = QCommsConfig(forward_precision=CommType.FP16)
    cases = [(name, {}, 0) for name in names] + [("tafe", AS_IN_THE_PAPER, seed) for seed in (3, 25, 33)]
    for name, arguments, seed in cases:
        for sharding_type, ranks in (("row_wise", 2), ("table_wise", 1)):  # that sum a row's embeddings
            try:
                check_sharded_step(partial(_whole_is_rounded, name, arguments, ranks), sharding_type, seed, quantised)
            except Exception as error:
                raise AssertionError(f"in {name}, {sharding_type}, seed {seed}") from error


@pytest.mark.slow
def test_a_quantised_step_is_that_of_one_process_with_rounded_sums():
    processes.run(_check, 2, [CONTROL, "ple", "aitm", "bpcm", "tafe"])


def _predictions(model: nn.Module, rows: ModelInput) -> tuple[Tensor, Tensor]:
    """Before and after a step."""
    with torch.no_grad():
        before = model.eval()(rows)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss, _ = model.train()(rows)
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        return before, model.eval()(rows)


def _largest_differences(name: str, *, relu: bool, **arguments: object) -> Tensor:
    """Of logits ``[before a step, after it]`` that rounding makes; at some of the seeds, a ReLU changes its sign."""
    differences = []
    for seed in (0, 3, 13, 31, 33):
        model, inputs = test_sharding.gen_model_and_input(
            model_class(name, **arguments), TABLES, {}, world_size=2, random_seed=seed
        )
        for perceptron in (m for m in model.modules() if isinstance(m, Perceptron)):
            perceptron._activation_fn = perceptron._activation_fn if relu else nn.functional.softplus
        rounded = _round_sums_of(copy.deepcopy(model), 1)
        pairs = zip(_predictions(model, inputs[0][0]), _predictions(rounded, inputs[0][0]), strict=True)
        differences.append(torch.stack([(x - y).abs().max() for x, y in pairs]))
    return torch.stack(differences).amax(0)


def test_only_a_relu_that_changes_sign_makes_rounding_large():
    dlrm = _largest_differences("dlrm", relu=True)
    tafe = _largest_differences("tafe", relu=True, **AS_IN_THE_PAPER)
    smooth = _largest_differences("tafe", relu=False, **AS_IN_THE_PAPER)
    assert (dlrm < 1e-3).all()
    assert tafe[0] < 2e-2
    assert tafe[1] > 0.5
    assert (smooth < 5e-2).all()
