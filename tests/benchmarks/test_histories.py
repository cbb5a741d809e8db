import pytest

from benchmarks.histories import LONGEST, Size, batch, check


def test_nothing_is_timed_where_padding_changes_the_loss() -> None:
    check({"transformer": 1.25, "transformer, padded": 1.25})
    with pytest.raises(SystemExit, match=r"the loss is 1.5 without padding and 1.25 with it"):
        check({"transformer": 1.5, "transformer, padded": 1.25})


def test_the_lengths_are_as_described() -> None:
    lengths = batch(Size()).sparse_features.to_dict()["last_items"].lengths()
    assert 11.5 < lengths.float().mean() < 13.5
    assert 0 == lengths.min() < 22 <= lengths.float().quantile(0.75) + 1
    assert lengths.max() == LONGEST
