"""A model whose dense part is made on the meta device and gets its memory later starts as one made directly."""

import copy
import inspect
import pickle
import pkgutil
from collections.abc import Callable, Iterator
from importlib import import_module

import pytest
import torch
from torch import Tensor, nn
from torchrec import EmbeddingCollection, EmbeddingConfig
from torchrec.distributed import DistributedModelParallel

from tests.support import TASKS, tables
from torchrec_mtl import ZILN, Ordinal, Task, TaskForest, models, modules
from torchrec_mtl.modules import DSelectK, FeatureArch, HistoryArch
from torchrec_mtl.modules.row_assignment import RowAssignment
from torchrec_mtl.modules.zero_collision_rows import ZeroCollisionRows
from torchrec_mtl.systems import SYSTEMS
from torchrec_mtl.training.process_group import process_group

CPU, META = torch.device("cpu"), torch.device("meta")
OPTIONS = {  # which make modules that no system has
    "adatt": {"num_shared_experts": 1},
    "home": {"categories": (1, 0, 1), "feature_gate_ranks": (4,)},
    "shared_bottom": {"tasks": TaskForest(*TASKS.tasks, Task("spend", kind=ZILN()), Task("stars", kind=Ordinal(5)))},
    "cross_stitch": {"stitch": "layer"},
    "mmoe": {"gate": DSelectK(per_example=False)},
    "bpcm": {"layer_norm": True, "attends_to": "both", "embedding_dim": 24},
    "tafe": {"selector": "per_layer", "selection": "mask", "schedule": "run", "embedding_dim": 24},
    "dbmtl": {"num_experts": 3},
    "aitm": {"normalization": "batch"},
    "pepnet": {"domain_fields": ["f1"], "prior_fields": ["f0", "f2"]},
    "esmm": {"transformer_layers": 1},  # of a history
}
CASES = [*((name, {}) for name in SYSTEMS), *OPTIONS.items()]
every_case = pytest.mark.parametrize(
    ("name", "arguments"), CASES, ids=[f"{name}{'_with_options' * bool(options)}" for name, options in CASES]
)


def build(name: str, arguments: dict[str, object], device: torch.device) -> nn.Module:
    """At the default sizes, which are large enough to compare variances."""
    torch.manual_seed(0)
    ebc = tables((16, 16, 16, 16), device)
    arguments, histories = dict(arguments), None
    if layers := arguments.pop("transformer_layers", 0):
        table = EmbeddingConfig(name="t_item", embedding_dim=16, num_embeddings=9, feature_names=["item", "seen"])
        rows = EmbeddingCollection(tables=[table], device=device)
        histories = HistoryArch(rows, {"seen": "item"}, transformer_layers=layers, dense_device=device)
    of_dense = {"dense_in_features": 32, "dense_arch_layer_sizes": (16, 16), "dense_device": device}
    features = FeatureArch(ebc, histories=histories, **of_dense)
    return SYSTEMS[name].model(features, **{"tasks": TASKS, **SYSTEMS[name].model_args, **arguments})


def owners(model: nn.Module) -> Iterator[nn.Module]:
    """The modules that have parameters or buffers of their own."""
    return (m for m in model.modules() if [*m.parameters(False), *m.buffers(False)])


def distributed(model: nn.Module) -> nn.Module:
    with process_group(CPU):
        return DistributedModelParallel(model, device=CPU)


def emptied(model: nn.Module) -> nn.Module:
    """As FSDP does it, and whoever follows PyTorch's documentation of the meta device."""
    model.to_empty(device=CPU)
    for module in owners(model):
        module.reset_parameters()  # type: ignore[operator]
    return model


def copied(model: nn.Module) -> nn.Module:
    return emptied(copy.deepcopy(model))


def pickled(model: nn.Module) -> nn.Module:
    return emptied(pickle.loads(pickle.dumps(model)))


@pytest.fixture
def _memory_as_it_was():
    """New memory holds NaN, and the largest integer."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def dense(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: value
        for name, value in model.state_dict().items()
        if ".embedding_bags." not in name and ".embeddings." not in name
    }


@pytest.mark.usefixtures("_memory_as_it_was")
@pytest.mark.parametrize("materialize", [distributed, emptied, copied, pickled], ids=lambda function: function.__name__)
@every_case
def test_starts_as_a_model_made_directly(name, arguments, materialize: Callable[[nn.Module], nn.Module]):
    """Constants are the same, and drawn values have the same mean and variance."""
    expected = dense(build(name, arguments, CPU))
    actual = dense(materialize(build(name, arguments, META)))
    assert actual.keys() == expected.keys()
    for parameter, drawn in expected.items():
        values = actual[parameter]
        assert values.isfinite().all(), parameter
        if (drawn == drawn.flatten()[0]).all() or "alpha" in parameter:
            assert torch.equal(values, drawn), parameter
        else:
            assert (values.mean() - drawn.mean()).abs() < 7 * drawn.std() / drawn.numel() ** 0.5, parameter
            assert drawn.numel() < 60 or 1 / 3 < values.var() / drawn.var() < 3, parameter


@every_case
def test_every_module_that_owns_parameters_or_buffers_resets_them(name, arguments):
    assert {
        type(m).__name__ for m in owners(build(name, arguments, CPU)) if not hasattr(m, "reset_parameters")
    } == set()


def test_no_module_of_ours_is_left_out():
    """Every class of a module is in one of the models above."""
    tested = {type(module) for name, arguments in CASES for module in build(name, arguments, META).modules()}
    found = set()
    for package in (modules, models):
        for file in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            classes = inspect.getmembers(import_module(file.name), inspect.isclass)
            found |= {c for _, c in classes if c.__module__ == file.name and issubclass(c, nn.Module)}
    # the first is abstract; the others stand in the place of tables: tests/modules/test_zero_collision.py
    others = (modules.ZeroCollisionEmbeddingBagCollection, ZeroCollisionRows, RowAssignment)
    assert found - tested == {models.MultiTaskModel, *others}
