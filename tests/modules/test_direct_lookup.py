"""The short way through tables that are not sharded gives what the collection gives, and is left where it must be."""

import copy

import pytest
import torch
from torch import nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.modules.embedding_configs import PoolingType
from torchrec.types import DataType

from torchrec_mtl import TaskChain
from torchrec_mtl.models import SharedBottom
from torchrec_mtl.modules import FeatureArch
from torchrec_mtl.ops import library

pytestmark = pytest.mark.usefixtures("kernel")
KEYS = ["further", "item", "user", "seen", "bought"]  # another order than the tables', and one that no table has


def collection(weighted=False, data_type=DataType.FP32, device=None):
    sums, means = PoolingType.SUM, PoolingType.SUM if weighted else PoolingType.MEAN
    shapes = {"t_user": (8, 40, ["user"], sums), "t_item": (12, 30, ["item", "bought"], means)}
    shapes["t_seen"] = (4, 20, ["seen"], means)
    configs = [
        EmbeddingBagConfig(
            name=name, embedding_dim=d, num_embeddings=n, feature_names=f, pooling=pooling, data_type=data_type
        )
        for name, (d, n, f, pooling) in shapes.items()
    ]
    return EmbeddingBagCollection(tables=configs, is_weighted=weighted, device=device)


def batch(size=9, weighted=False, longest=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(longest + 1, (len(KEYS) * size,), generator=generator)
    ids = torch.randint(20, (int(lengths.sum()),), generator=generator)
    weights = torch.rand(len(ids), generator=generator) if weighted else None
    return KeyedJaggedTensor(KEYS, ids, weights, lengths=lengths)


class Calls:
    """Counts how often collections are called."""

    def __init__(self, monkeypatch):
        self.number, called = 0, EmbeddingBagCollection.forward

        def forward(collection, features):
            self.number += 1
            return called(collection, features)

        monkeypatch.setattr(EmbeddingBagCollection, "forward", forward)


@pytest.fixture
def calls(monkeypatch):
    return Calls(monkeypatch)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("size", "longest"), [(1, 1), (1, 0), (9, 3), (130, 5)])
def test_it_gives_what_the_collection_gives(calls, size, longest, weighted):
    tables, features = collection(weighted), batch(size, weighted, longest)
    expected = tables(features).to_dict()
    arch = FeatureArch(tables)
    calls.number = 0
    with torch.no_grad():
        found = arch(torch.empty(size, 0), features)
    assert calls.number == 0
    torch.testing.assert_close(found, torch.cat([expected[name] for name in arch.embedding_names], 1).detach())


def test_changed_tables_are_seen_at_once(calls):
    arch, features = FeatureArch(collection()), batch()
    tables = arch.embedding_bag_collection.embedding_bags
    with torch.inference_mode():
        before = arch(torch.empty(9, 0), features)
        tables["t_user"].weight.data.mul_(2)
        tables["t_seen"].weight = nn.Parameter(torch.zeros(20, 4))
        after = arch(torch.empty(9, 0), features)
    assert calls.number == 0
    assert after[:, :8].equal(2 * before[:, :8])
    assert after[:, 8:32].equal(before[:, 8:32])
    assert not after[:, 32:].any()


def test_a_frozen_table_needs_no_context(calls):
    arch = FeatureArch(collection().requires_grad_(False))
    arch(torch.empty(9, 0), batch())
    assert calls.number == 0


class OwnCollection(EmbeddingBagCollection):
    """A user's own."""


class OwnBag(nn.EmbeddingBag):
    """A user's own."""


def _with_hook_of_a_table(tables):
    tables.embedding_bags["t_item"].register_forward_hook(lambda *_: None)


def _with_hook(tables):
    tables.register_forward_pre_hook(lambda *_: None)


def _of_another_class(tables):
    tables.__class__ = OwnCollection


def _with_a_table_of_another_class(tables):
    tables.embedding_bags["t_item"].__class__ = OwnBag


def _with_sparse_gradients(tables):
    tables.embedding_bags["t_item"].sparse = True


CHANGES = [_with_hook_of_a_table, _with_hook, _of_another_class, _with_a_table_of_another_class]
CHANGES += [_with_sparse_gradients, nn.Module.half, nn.Module.double]


@pytest.mark.parametrize("change", CHANGES)
def test_what_else_reads_the_tables_is_called(calls, change):
    arch = FeatureArch(collection())
    change(arch.embedding_bag_collection)
    with torch.no_grad():
        arch(torch.empty(9, 0), batch())
    assert calls.number == 1


@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_are_the_collections(calls, weighted):
    arch, features = FeatureArch(collection(weighted)), batch(weighted=weighted)
    tables = arch.embedding_bag_collection
    tables.embedding_bags["t_seen"].weight.requires_grad_(False)
    upstream = torch.randn(9, arch.out_features)
    torch.cat([tables(features).to_dict()[name] for name in arch.embedding_names], 1).backward(upstream)
    expected = [None if p.grad is None else p.grad.clone() for p in tables.parameters()]
    tables.zero_grad()
    calls.number = 0
    arch(torch.empty(9, 0), features).backward(upstream)
    assert calls.number == 0
    for p, gradient in zip(tables.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, gradient)


def test_derivatives_of_another_kind_are_the_collections(calls):
    arch, features = FeatureArch(collection(weighted=True)), batch(weighted=True)
    features.weights().requires_grad_()
    arch(torch.empty(9, 0), features).sum().backward()
    assert calls.number == 1
    assert features.weights().grad.any()
    arch = FeatureArch(collection())

    def total(parameters):
        return torch.func.functional_call(arch, parameters, (torch.empty(9, 0), batch())).sum()

    gradients = torch.func.grad(total)(dict(arch.named_parameters()))
    assert calls.number == 2
    assert all(gradient.any() for gradient in gradients.values())


def test_without_the_kernel_the_collection_is_called(calls, monkeypatch):
    arch = FeatureArch(collection())
    with torch.no_grad():
        expected = arch(torch.empty(9, 0), batch())
        monkeypatch.setattr(library, "_is_loaded", lambda: False)
        torch.testing.assert_close(arch(torch.empty(9, 0), batch()), expected)
    assert calls.number == 1


def test_weights_that_the_tables_do_not_use_are_left_out(calls):
    arch = FeatureArch(collection(), check_batches=False)
    features = batch()
    weighted = KeyedJaggedTensor(KEYS, features.values(), torch.rand(len(features.values())), features.lengths())
    with torch.no_grad():
        assert arch(torch.empty(9, 0), weighted).equal(arch(torch.empty(9, 0), features))
    assert calls.number == 0


def test_an_id_outside_its_table_is_refused():
    features = batch()
    far = KeyedJaggedTensor(KEYS, features.values() + 20, lengths=features.lengths())
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"an id of key 3 \(=\d+\) must be from 0 to 19"):
        FeatureArch(collection())(torch.empty(9, 0), far)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_graph_has_the_collection(calls):
    model = SharedBottom(collection(), TaskChain(["click", "purchase"]), bottom_layer_sizes=[4], tower_layer_sizes=[3])
    features = batch()

    class FromTensors(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = copy.deepcopy(model)

        def forward(self, values, lengths):
            return self.model(torch.empty(9, 0), KeyedJaggedTensor(KEYS, values, lengths=lengths))

    with torch.no_grad():
        program = torch.export.export(FromTensors(), (features.values(), features.lengths()), strict=False)
    assert calls.number == 1
    names = [str(node.target) for node in program.graph.nodes]
    assert not any("embedding_bag_lookup" in name for name in names)
    with torch.no_grad():
        traced = torch.jit.trace(FromTensors(), (features.values(), features.lengths()))
    assert "embedding_bag_lookup" not in str(traced.inlined_graph)
