"""Metrics of each scene are those of its rows."""

import math

import pytest
import torch
from torchrec import KeyedJaggedTensor

from tests.support import TASKS, batch
from torchrec_mtl.metrics import MultiTaskMetrics
from torchrec_mtl.training.scenes import SceneMetrics

SCENES = torch.tensor([3, 0, 3, 1, 0, 3, 3, 1, 0, 0, 3, 1])


def rows_of(scenes, seed, num_padded=0):
    """Logits, labels, weights and groups, and ids of two fields; padding has no id."""
    rows = batch(len(scenes), seed, weighted=True)
    logits = torch.randn(len(scenes), len(TASKS), generator=torch.Generator().manual_seed(seed))
    lengths = torch.ones(len(scenes), dtype=torch.int32)
    lengths[len(scenes) - num_padded :] = 0
    rows.weights[len(scenes) - num_padded :] = 0
    ids = KeyedJaggedTensor.from_lengths_sync(
        ["user", "page"], torch.cat([scenes, scenes[: len(scenes) - num_padded]]), torch.cat([lengths * 0 + 1, lengths])
    )
    return ids, (logits, rows.labels, rows.weights, torch.arange(len(scenes)) % 3)


@pytest.mark.parametrize("with_groups", [False, True])
def test_each_scene_is_measured_as_its_rows_alone(with_groups):
    scenes = SceneMetrics("page", 5, TASKS, with_groups)
    kept = []
    for seed, num_padded in ((0, 0), (1, 2)):
        ids, columns = rows_of(SCENES, seed, num_padded)
        columns = columns if with_groups else columns[:3]
        scenes.update(ids, *columns)
        kept.append([column[: len(SCENES) - num_padded] for column in (SCENES, *columns)])
    found = scenes.compute()
    assert [row["scene"] for row in found] == sorted(row["scene"] for row in found)
    assert {row["scene"] for row in found} == {0, 1, 3}
    for scene in (0, 1, 3):
        alone = MultiTaskMetrics(TASKS, with_groups)
        for of_scene, *columns in kept:
            alone.update(*(column[of_scene == scene] for column in columns))
        for row, expected in zip([row for row in found if row["scene"] == scene], alone.compute(), strict=True):
            value = expected.pop("value")
            assert row == {"scene": scene, **expected, "value": row["value"]}
            assert row["value"] == value or math.isnan(row["value"]) == math.isnan(value) is True
