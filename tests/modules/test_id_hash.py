"""The hash of ids: one id, one number, spread evenly."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchrec_mtl.modules.id_hash import ANY_ID, hash_ids, unhash_ids


@given(st.lists(st.integers(0, ANY_ID - 1), min_size=1, unique=True))
def test_ids_are_told_apart_and_found_again(ids):
    hashed = hash_ids(torch.tensor(ids))
    assert hashed.unique().numel() == len(ids)
    assert unhash_ids(hashed).tolist() == ids
    assert 0 <= hashed.min() <= hashed.max() < ANY_ID


def test_what_is_no_id_becomes_the_mark_of_none():
    assert hash_ids(torch.tensor([-1, -(2**63), ANY_ID])).tolist() == [ANY_ID] * 3
    assert unhash_ids(torch.tensor([ANY_ID])).tolist() == [ANY_ID]


@pytest.mark.parametrize("step", [1, 64, 1000, 2**20, 2**40])
def test_ids_of_any_step_are_spread_over_the_buckets(step):
    """TorchRec sends ids to ranks by their size: small ones, or those of one step, all meet on one rank."""
    in_bucket = torch.bincount(hash_ids(torch.arange(32_000) * step) % 32, minlength=32)
    assert in_bucket.min() > 850  # five standard deviations below 1000
    assert in_bucket.max() < 1150
