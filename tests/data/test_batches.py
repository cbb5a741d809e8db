import pytest
import torch
from torchrec.datasets.utils import Batch

from tests import support
from torchrec_mtl.data import MultiTaskBatch


@pytest.mark.parametrize("weighted", [False, True])
def test_to_moves_every_part(weighted: bool) -> None:
    batch = support.batch(3, weighted=weighted).to(torch.device("meta"), non_blocking=True)
    assert batch.dense_features.is_meta
    assert batch.sparse_features.values().is_meta
    assert batch.labels.is_meta
    assert batch.weights.is_meta if weighted else batch.weights is None


def test_has_all_members_of_torchrecs_batch() -> None:
    public = [name for name in dir(Batch) if not name.startswith("_")]
    assert all(callable(getattr(MultiTaskBatch, name)) for name in public)
    assert list(Batch.__annotations__) == list(MultiTaskBatch.__annotations__)[:3]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_pinned_and_on_a_stream() -> None:
    batch = support.batch(3, weighted=True)
    pinned = batch.pin_memory()
    assert pinned.labels.is_pinned()
    assert pinned.weights.is_pinned()
    assert pinned.sparse_features.values().is_pinned()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        moved = pinned.to(torch.device("cuda"), non_blocking=True)
    torch.cuda.current_stream().wait_stream(stream)
    moved.record_stream(torch.cuda.current_stream())
    assert torch.equal(moved.labels.cpu(), batch.labels)
    assert torch.equal(moved.weights.cpu(), batch.weights)
