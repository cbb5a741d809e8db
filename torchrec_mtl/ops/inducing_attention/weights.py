"""The weights of TAFE's stack, grouped: tuples of tensors, so they pass flat through custom ops and exports.

K inducing points, T tasks, D embedding dimension; with a leading L for the layers of a stack, without it for one
layer. The square weights' rows are outputs, as in `torch.nn.Linear`; head ``j`` owns rows ``j * d_h`` to
``(j + 1) * d_h`` of keys and values, and those columns of the points, of the indicators and of ``output_weight``.
"""

from typing import NamedTuple

from torch import Tensor


class GeneratorWeights(NamedTuple):
    """ASRG's, TAFE eq. (17)-(20)."""

    points: Tensor  # I [(L,) K, D]
    key_weight: Tensor  # Wk [(L,) D, D]
    value_weight: Tensor  # Wv [(L,) D, D]
    output_weight: Tensor  # Wo [(L,) D, D]
    norm_weight: Tensor  # LayerNorm's [(L,) D]
    norm_bias: Tensor  # [(L,) D]

    def layers(self) -> list["GeneratorWeights"]:
        """A stack's, layer by layer."""
        return [GeneratorWeights(*layer) for layer in zip(*(x.unbind(0) for x in self), strict=True)]


class AdapterWeights(NamedTuple):
    """TSA's, TAFE eq. (21)-(22): no parameter is shared by two tasks."""

    indicators: Tensor  # a [(L,) T, D]
    key_weight: Tensor  # [(L,) T, D, D]
    value_weight: Tensor  # [(L,) T, D, D]
    output_weight: Tensor  # [(L,) T, D, D]
    norm_weight: Tensor  # [(L,) T, D]
    norm_bias: Tensor  # [(L,) T, D]

    def layers(self) -> list["AdapterWeights"]:
        """A stack's, layer by layer."""
        return [AdapterWeights(*layer) for layer in zip(*(x.unbind(0) for x in self), strict=True)]
