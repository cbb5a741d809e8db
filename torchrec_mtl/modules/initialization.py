"""Initial values of linear layers and of learnt queries."""

from functools import partial

import torch
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import InputError


@checked
@torch.no_grad()
def he_normal_(weight: Tensor, bias: Tensor | None = None) -> None:
    """Draws ``weight [..., out, in]`` from a normal distribution of variance ``2 / in``, and sets ``bias`` to 0.

    He et al., ICCV 2015, eq. (10): ReLU layers then preserve the scale of their input. The variance of PyTorch's
    default is a sixth of this; on embeddings that start near 0, training takes hundreds of steps to make up for it.

    Example::

        >>> layer = nn.Linear(512, 2048)
        >>> he_normal_(layer.weight, layer.bias)
        >>> round((layer.weight.detach().var() * 512).item(), 1), layer.bias.any().item()
        (2.0, False)

    Raises:
        InputError: if ``weight`` has no dimension of inputs.
    """
    if weight.ndim < 1 or not weight.shape[-1]:
        raise InputError(f"`weight` (of shape {list(weight.shape)}) must be [..., out, in], in at least 1")
    weight.normal_(std=(2 / weight.shape[-1]) ** 0.5)
    if bias is not None:
        bias.zero_()


def _reset_linear(layer: nn.Linear) -> None:
    he_normal_(layer.weight, layer.bias)


@checked
def initialize_linear_layers(*modules: nn.Module) -> None:
    """Applies `he_normal_` to every `torch.nn.Linear` in ``modules``, now and whenever its parameters are reset.

    TorchRec's ``DistributedModelParallel`` and FSDP call ``reset_parameters`` of a layer that was made on the ``meta``
    device. PyTorch's own would draw PyTorch's default.

    Example::

        >>> layer = nn.Linear(512, 2048, device="meta")
        >>> initialize_linear_layers(layer)
        >>> layer.to_empty(device="cpu").reset_parameters()
        >>> round((layer.weight.detach().var() * 512).item(), 1), layer.bias.any().item()
        (2.0, False)
    """
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Linear):
                _reset_linear(layer)
                # of the layer, not of a class: quantisation and FX know a linear layer by its exact type
                layer.reset_parameters = partial(_reset_linear, layer)  # type: ignore[method-assign]


def reset_attention(
    queries: Tensor, key: Tensor, value: Tensor, output: Tensor, norm_weight: Tensor, norm_bias: Tensor
) -> None:
    """Draws learnt queries ``[..., N, D]`` and the weights of their attention, stacked over layers and tasks.

    The queries are drawn as in Set Transformer (Xavier uniform), the square matrices by `he_normal_`, and the norms
    start as in `torch.nn.LayerNorm`.
    """
    num_queries, dim = queries.shape[-2:]
    nn.init.uniform_(queries, -((6 / (num_queries + dim)) ** 0.5), (6 / (num_queries + dim)) ** 0.5)
    for weight in (key, value, output):
        he_normal_(weight)
    nn.init.ones_(norm_weight)
    nn.init.zeros_(norm_bias)
