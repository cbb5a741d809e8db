"""Jagged rows, against one sample after the other."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from torchrec_mtl.modules import jagged

LENGTHS = [torch.tensor(each) for each in ([3, 0, 1, 7, 4, 3, 0], [0, 0], [5], [2, 2])]
every_shape = pytest.mark.parametrize("lengths", LENGTHS, ids=str)


def rows(lengths, width=4):
    generator = torch.Generator().manual_seed(len(lengths))
    return torch.randn(int(lengths.sum()), width, generator=generator, dtype=torch.float64)


@every_shape
@pytest.mark.parametrize("attend", [jagged.attend, jagged._padded])
def test_attention_is_that_of_each_sample(lengths, attend):
    queries, keys, values = rows(lengths, 12).chunk(3, 1)
    parts = [
        scaled_dot_product_attention(*(x[start:end].view(1, -1, 2, 2).transpose(1, 2) for x in (queries, keys, values)))
        for start, end in zip((lengths.cumsum(0) - lengths).tolist(), lengths.cumsum(0).tolist(), strict=True)
        if end > start
    ]
    expected = [part.transpose(1, 2).reshape(-1, 4) for part in parts]
    found = attend(queries, keys, values, lengths, 2, 7)
    torch.testing.assert_close(found, torch.cat(expected) if expected else queries)


@every_shape
def test_sums_softmax_and_newest(lengths):
    values, parts = rows(lengths), rows(lengths).split(lengths.tolist())
    assert torch.allclose(jagged.summed(values, lengths), torch.stack([part.sum(0) for part in parts]))
    scores = 1000 * values[:, :1]
    found = jagged.softmax(scores, lengths)
    assert torch.allclose(found, torch.cat([part.softmax(0) for part in scores.split(lengths.tolist())]))
    kept, kept_lengths = jagged.newest(values, lengths, 2)
    assert kept.equal(torch.cat([part[-2:] for part in parts]))
    assert kept_lengths.tolist() == [min(2, length) for length in lengths.tolist()]


def test_spread_is_undone_by_a_mean():
    samples = torch.randn(7, 3)
    spread = jagged.spread(samples, rows(LENGTHS[0]), LENGTHS[0])
    lengths = LENGTHS[0].clamp(min=1)[:, None]
    torch.testing.assert_close(jagged.summed(spread, LENGTHS[0]) / lengths, samples * (LENGTHS[0] > 0)[:, None])
