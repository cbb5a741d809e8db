"""The definition of BPCM's feature towers and conversions, eq. (2)-(9); the kernel is tested against it."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from torchrec_mtl.ops.attention.reference import attention

TOWER, CONVERSION = 9, 3  # numbers of weights


def feature_tower(fields: Tensor, weights: Sequence[Tensor], num_heads: int) -> Tensor:
    """BPCM eq. (2)-(6): ``E [B, F, D]`` to ``q [B, F, D]``; weights in the order of `behavior_conversion`."""
    query, key, value, first, first_bias, second, second_bias, of_organic, of_attended = weights
    organic = F.linear(F.linear(fields, first, first_bias).relu(), second, second_bias).relu()  # BPCM eq. (4)
    attended = attention(fields, fields, query, key, value, num_heads)
    share = torch.sigmoid(F.linear(organic, of_organic) + F.linear(attended, of_attended))  # BPCM eq. (5)
    return torch.lerp(organic, attended, share)  # BPCM eq. (6)


def behavior_conversion(
    fields: Tensor, *weights: Tensor, edges: Sequence[tuple[int, int]], num_heads: int, masks: Tensor
) -> list[Tensor]:
    """BPCM eq. (2)-(9); ``masks [E, B, F, D]`` is what dropout multiplies the messages with."""
    towers = weights[: len(weights) - CONVERSION * len(edges)]
    queries = [feature_tower(fields, towers[i : i + TOWER], num_heads) for i in range(0, len(towers), TOWER)]
    states = list(queries)
    for place, (parent, task) in enumerate(edges):
        start = len(towers) + CONVERSION * place
        query, key, value = weights[start : start + CONVERSION]
        message = states[parent] * masks[place]  # BPCM eq. (8)
        states[task] = attention(queries[task], message, query, key, value, num_heads) + queries[task]  # BPCM eq. (9)
    return states
