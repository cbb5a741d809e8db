"""Single-Task: an MLP and tables for each task."""

import pytest

from tests.modules import parameters
from tests.modules.parameters import assert_close, randomized
from tests.oracles import common
from tests.support import NUM_DENSE, TASKS, batch, build, chain, tables
from torchrec_mtl.errors import InputError
from torchrec_mtl.models import SingleTask
from torchrec_mtl.modules import FeatureArch


def test_each_task_is_an_mlp_on_its_own_features():
    model, rows = randomized(build("single_task")), batch(5)
    inputs = (rows.dense_features.double(), rows.sparse_features)
    archs = zip(model.features, model.over_arch, strict=True)
    for logits, (features, tower) in zip(model(*inputs).unbind(1), archs, strict=True):
        assert_close(logits, common.mlp(parameters.array(features(*inputs)), parameters.mlp(tower))[:, 0])


def test_tasks_share_nothing():
    model, rows = build("single_task"), batch(32)
    model(rows.dense_features, rows.sparse_features)[:, 0].sum().backward()
    for task in range(len(TASKS)):
        of_task = [*model.features[task].parameters(), *model.over_arch[task].parameters()]
        assert any(p.grad is not None and p.grad.any() for p in of_task) == (task == 0)


def test_takes_features_for_each_task():
    first, second = tables((4,)), tables((4, 8))
    model, rows = SingleTask([first, FeatureArch(second, dense_in_features=NUM_DENSE)], chain(2)), batch(6)
    model(rows.dense_features, rows.sparse_features)[:, 0].sum().backward()
    assert first.embedding_bags["t0"].weight.grad.any()
    assert not any(p.grad is not None and p.grad.any() for p in model.features[1].parameters())
    with pytest.raises(InputError, match=r"`features` \(a sequence of 1\) must be one a task \(2\)"):
        SingleTask([first], chain(2))
