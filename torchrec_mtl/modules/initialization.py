"""What linear layers start from."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def he_normal_(weight: Tensor, bias: Tensor | None = None) -> None:
    """Draws ``weight [..., out, in]`` from a normal distribution of variance ``2 / in``, and sets ``bias`` to 0.

    He et al., ICCV 2015, eq. (10): ReLU layers then keep the size of what they pass on. torch's own default has a
    sixth of this variance; over embeddings that start near 0, it takes hundreds of steps to make up for that.

    Example::

        >>> layer = nn.Linear(512, 2048)
        >>> he_normal_(layer.weight, layer.bias)
        >>> round((layer.weight.detach().var() * 512).item(), 1), layer.bias.any().item()
        (2.0, False)
    """
    weight.normal_(std=(2 / weight.shape[-1]) ** 0.5)
    if bias is not None:
        bias.zero_()


def initialize_linear_layers(*modules: nn.Module) -> None:
    """`he_normal_` on every `torch.nn.Linear` in ``modules``."""
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                he_normal_(layer.weight, layer.bias)
