"""The gates of PEPNet, which scale embeddings and layers by what a prior says (Chang et al., KDD 2023)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import InputError, check_at_least, check_sizes
from torchrec_mtl.modules.mlp import MLP


class GateUnit(nn.Module):
    """PEPNet's Gate NU: ``delta = 2 sigmoid(W' relu(W x + b) + b')``, a factor from 0 to 2 for each unit.

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


def check_positions(num_fields: int, **fields: Sequence[int]) -> None:
    """Raises `InputError` unless each of ``fields`` holds different positions of ``num_fields`` fields."""
    for name, positions in fields.items():
        if not set(positions) <= set(range(num_fields)) or len(set(positions)) < len(positions):
            raise InputError(f"`{name}` (={list(positions)}) must be different positions, below {num_fields}")


class EmbeddingGate(nn.Module):
    """PEPNet's EPNet: ``O_ep = delta * E`` with ``delta = U([E(F_d); stop(E)])``, a `GateUnit`.

    The fields ``F_d`` tell domains apart, such as the page or the app; ``stop(.)`` passes no gradient on. The paper
    does not say how wide the gate's hidden layer is; as in TorchEasyRec, it is as wide as the embeddings.

    Args:
        field_dims: dimension ``D_f`` of each field.
        domain_fields: positions of the fields ``F_d``.

    Raises:
        InputError: if there are no ``domain_fields``, one is not the position of a field or occurs twice, or a
            dimension is below 1.

    Example::

        >>> EmbeddingGate(field_dims=[8, 4, 4], domain_fields=[2])(torch.randn(2, 16)).shape
        torch.Size([2, 16])
    """

    @checked
    def __init__(self, field_dims: Sequence[int], domain_fields: Sequence[int]) -> None:
        super().__init__()
        check_sizes(1, field_dims=field_dims)
        if not domain_fields:
            raise InputError("`domain_fields` must be at least one position")
        check_positions(len(field_dims), domain_fields=domain_fields)
        self.field_dims, self.domain_fields, width = list(field_dims), list(domain_fields), sum(field_dims)
        self.unit = GateUnit(sum(field_dims[field] for field in domain_fields) + width, width, width)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Maps the concatenated fields ``E [B, sum(D_f)]`` to ``O_ep`` of the same shape."""
        fields = embeddings.split(self.field_dims, dim=1)
        domain = [fields[field] for field in self.domain_fields]
        return self.unit(torch.cat([*domain, embeddings.detach()], dim=1)) * embeddings
