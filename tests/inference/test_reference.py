"""What rows and scores are compared with: bins of equal size, and files that are what they were."""

import numpy as np
import pytest

from torchrec_mtl.data.table.drift import FieldCounts
from torchrec_mtl.errors import InputError
from torchrec_mtl.inference.package.reference import NUM_BINS, Reference
from torchrec_mtl.tasks import TaskChain

TASKS = TaskChain(["click", "buy"])
SCORES = np.random.default_rng(0).random((1000, 2)).round(3)
FIELDS = {"user": FieldCounts(1000, 3, 40, ())}


def test_each_bin_has_as_many_scores():
    reference = Reference.of(SCORES, TASKS, FIELDS)
    for task, name in enumerate(TASKS):
        assert sum(reference.scores[name]) == 1000
        assert all(abs(number - 1000 / NUM_BINS) < 10 for number in reference.scores[name])
        assert tuple(reference.bins(name, SCORES[:, task])) == reference.scores[name]


@pytest.mark.parametrize("distinct", [1, 2, 5])
def test_scores_that_are_alike_have_fewer_bins(distinct):
    """As an isotonic calibration makes them."""
    scores = np.linspace(0.1, 0.9, distinct).repeat(100)[:, None]
    reference = Reference.of(scores, TaskChain(["click"]), {})
    assert list(np.diff(reference.edges["click"])) == [x for x in np.diff(reference.edges["click"]) if x > 0]
    assert sum(reference.scores["click"]) == 100 * distinct
    assert len(reference.scores["click"]) == len(reference.edges["click"]) + 1


def test_it_is_read_as_it_was_written(tmp_path):
    reference = Reference.of(SCORES, TASKS, FIELDS)
    reference.save(tmp_path)
    assert Reference.load(tmp_path) == reference


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"edges": 3}', '{"edges": {}, "scores": {}, "fields": {"user": 3}}'])
def test_another_file_is_one_sentence(text, tmp_path):
    (tmp_path / "reference.json").write_text(text)
    with pytest.raises(InputError, match=r"reference\.json"):
        Reference.load(tmp_path)
