"""The gate of PEPNet, which scales each unit of a layer by what a prior says (Chang et al., KDD 2023)."""

import torch
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_at_least
from torchrec_mtl.modules.mlp import MLP


class GateUnit(nn.Module):
    """Gate NU, PEPNet section 3.2.1: ``delta = 2 sigmoid(W' relu(W x + b) + b')``, a factor from 0 to 2 for each unit.

    The 2 is the paper's value of ``gamma``: a gate that knows nothing leaves a unit as it is.

    Args:
        in_features: width of the input, a prior beside what is to be scaled.
        hidden_size: width of the hidden layer.
        out_features: number of units to be scaled.

    Raises:
        InputError: if a width is below 1.

    Example::

        >>> gate = GateUnit(in_features=6, hidden_size=4, out_features=5)
        >>> _ = nn.init.zeros_(gate.output.weight), nn.init.zeros_(gate.output.bias)
        >>> gate(torch.randn(1, 6))
        tensor([[1., 1., 1., 1., 1.]], grad_fn=<MulBackward0>)
    """

    @checked
    def __init__(self, in_features: int, hidden_size: int, out_features: int) -> None:
        super().__init__()
        check_at_least(1, out_features=out_features)
        self.hidden = MLP(in_features, [hidden_size])
        self.output = nn.Linear(hidden_size, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, in_features]`` to factors ``[B, out_features]``."""
        return 2 * torch.sigmoid(self.output(self.hidden(x)))
