"""Operations on jagged rows: ``values [V, D]``, the rows of all samples one after the other, and ``lengths [B]``.

On the CPU no row is padded. In a graph (`torch.export`, `torch.compile`) and on other devices `attend` alone pads, and
only within its products: there, one operation is worth more than the padding costs.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def owners(values: Tensor, lengths: Tensor) -> Tensor:
    """The sample of each row, ``[V]``."""
    return torch.repeat_interleave(lengths, output_size=values.shape[0])


def ages(values: Tensor, lengths: Tensor) -> Tensor:
    """How many rows of the same sample come after each row, ``[V]``: the newest has 0."""
    ends = lengths.cumsum(0).index_select(0, owners(values, lengths))
    return ends - 1 - torch.arange(values.shape[0], device=values.device)


@torch.fx.wrap
def newest(values: Tensor, lengths: Tensor, max_length: int) -> tuple[Tensor, Tensor]:
    """The last ``max_length`` rows of each sample.

    Example::

        >>> values, lengths = newest(torch.tensor([[1.0], [2.0], [3.0], [9.0]]), torch.tensor([3, 0, 1]), 2)
        >>> values.tolist(), lengths.tolist()
        ([[2.0], [3.0], [9.0]], [2, 0, 1])
    """
    return values[ages(values, lengths) < max_length], lengths.clamp(max=max_length)


@torch.fx.wrap
def spread(samples: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
    """Repeats each of ``samples [B, D]`` for its rows, ``[V, D]``."""
    return samples.index_select(0, owners(values, lengths))


@torch.fx.wrap
def summed(values: Tensor, lengths: Tensor) -> Tensor:
    """The sum of each sample's rows, ``[B, D]``; zeros for a sample without rows.

    Example::

        >>> summed(torch.tensor([[1.0], [2.0], [9.0]]), torch.tensor([2, 0, 1])).tolist()
        [[3.0], [0.0], [9.0]]
    """
    return values.new_zeros(lengths.shape[0], values.shape[1]).index_add(0, owners(values, lengths), values)


@torch.fx.wrap
def softmax(scores: Tensor, lengths: Tensor) -> Tensor:
    """The softmax of ``scores [V, 1]`` among the rows of each sample.

    Example::

        >>> softmax(torch.tensor([[7.0], [7.0], [9.0]]), torch.tensor([2, 0, 1])).flatten().tolist()
        [0.5, 0.5, 1.0]
    """
    of_sample = owners(scores, lengths)
    largest = scores.detach().new_zeros(lengths.shape[0], 1)
    largest = largest.scatter_reduce(0, of_sample[:, None], scores.detach(), "amax", include_self=False)
    powers = (scores - largest.index_select(0, of_sample)).exp()
    return powers / spread(summed(powers, lengths), scores, lengths)


@torch.fx.wrap
def attend(queries: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, num_heads: int, max_length: int) -> Tensor:
    """Scaled dot-product attention among the rows of each sample.

    Args:
        queries: ``[V, D]``.
        keys: ``[V, D]``.
        values: ``[V, D]``.
        lengths: number of rows of each sample, ``[B]``.
        num_heads: number of heads; divides ``D``.
        max_length: the largest of ``lengths`` or more.

    Returns:
        ``[V, D]``.
    """
    if queries.device.type != "cpu" or torch.compiler.is_compiling():
        return _padded(queries, keys, values, lengths, num_heads, max_length)
    return _by_length(torch.cat([queries, keys, values], dim=1), lengths, num_heads)


def _by_length(rows: Tensor, lengths: Tensor, num_heads: int) -> Tensor:
    """Samples of one length are a batch without padding; the rows are brought in their order, and back."""
    order = torch.argsort(lengths.index_select(0, owners(rows, lengths)), stable=True)
    counts = [number * length for length, number in enumerate(torch.bincount(lengths).tolist())]
    parts = []
    for length, part in enumerate(rows.index_select(0, order).split(counts)):
        if len(part):
            heads = part.view(-1, length, 3, num_heads, rows.shape[1] // 3 // num_heads).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(*heads.unbind())
            parts.append(attended.transpose(1, 2).reshape(len(part), -1))
    if not parts:
        return rows[:, : rows.shape[1] // 3]
    return torch.cat(parts).index_select(0, torch.argsort(order))


def _padded(queries: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, num_heads: int, max_length: int) -> Tensor:
    num_samples, dim = lengths.shape[0], queries.shape[1]
    place = owners(queries, lengths) * max_length + ages(queries, lengths)

    def heads(rows: Tensor) -> Tensor:
        padded = rows.new_zeros(num_samples * max_length, dim).index_copy(0, place, rows)
        return padded.view(num_samples, max_length, num_heads, dim // num_heads).transpose(1, 2)

    is_row = torch.arange(max_length, device=lengths.device) < lengths[:, None].clamp(min=1)  # softmax needs one
    attended = F.scaled_dot_product_attention(
        heads(queries), heads(keys), heads(values), attn_mask=is_row[:, None, None, :]
    )
    return attended.transpose(1, 2).reshape(num_samples * max_length, dim).index_select(0, place)
