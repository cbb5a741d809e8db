"""Layers of a matrix product, a bias and a ReLU."""

from collections.abc import Sequence

import torch
from torchrec.modules import mlp

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_at_least, check_sizes


class MLP(mlp.MLP):
    """TorchRec's MLP of ReLU layers; the ReLU overwrites the product, which no gradient reads, instead of copying it.

    Inputs are ``[rows, in_features]``: the product of more dimensions is a view, and overwriting that takes a copy.

    Args:
        in_features: width of the input.
        layer_sizes: layer widths.

    Raises:
        InputError: if there is no layer, or a width is below 1.

    Example::

        >>> MLP(8, [6, 4])(torch.randn(2, 8)).shape
        torch.Size([2, 4])
    """

    @checked
    def __init__(self, in_features: int, layer_sizes: Sequence[int]) -> None:
        check_at_least(1, in_features=in_features)
        check_sizes(1, layer_sizes=layer_sizes)
        super().__init__(in_features, list(layer_sizes), activation=torch.relu_)
