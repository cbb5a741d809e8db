"""The definition of the lookup, in PyTorch's operations. The kernel is tested against it."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def lookup(
    tables: Sequence[Tensor],
    table_of_field: Sequence[int],
    key_of_field: Sequence[int],
    mean_of_field: Sequence[bool],
    ids: Tensor,
    offsets: Tensor,
    batch: int,
    weights: Tensor | None = None,
) -> Tensor:
    """Arguments as in `torchrec_mtl.ops.embedding_bag.lookup`."""
    fields = []
    for table, key, mean in zip(table_of_field, key_of_field, mean_of_field, strict=True):
        starts = offsets[key * batch : (key + 1) * batch + 1].long()
        inside = slice(int(starts[0]), int(starts[-1]))
        scale = torch.ones(inside.stop - inside.start, dtype=tables[table].dtype)
        if weights is not None:
            scale = scale * weights[inside]
        if mean:
            lengths = starts.diff()
            scale = scale / lengths.repeat_interleave(lengths)
        fields.append(
            F.embedding_bag(
                ids[inside].long(),
                tables[table],
                starts - starts[0],
                mode="sum",
                per_sample_weights=scale,
                include_last_offset=True,
            )
        )
    return torch.cat(fields, dim=1)
