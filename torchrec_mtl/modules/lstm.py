"""Long short-term memories (Hochreiter and Schmidhuber, 1997) side by side, in operations that FX can trace.

Letters: ``N`` networks, ``B`` samples, ``S`` steps of a sequence; ``H`` is the width of a state.
"""

from typing import Any

import torch
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_at_least
from torchrec_mtl.modules.tracing import unbind


class LSTMs(nn.Module):
    """``N`` LSTMs of one layer, each from a zero state, with one product for all of them in every step.

    For the input ``x_t`` and the state before, with ``*`` the elementwise product::

        i, f, o = sigmoid(W_i x_t + U_i h + b_i), ...    g = tanh(W_g x_t + U_g h + b_g)
        c_t = f * c + i * g                              h_t = o * tanh(c_t)

    `torch.nn.LSTM` is no option: TorchRec's pipelines, `torch.compile` and exports do not see into it.

    Parameters, for each network: ``input [4 H, in_features]``, ``recurrent [4 H, H]`` and ``bias [4 H]``, whose rows
    are of ``i``, ``f``, ``o`` and ``g``. They start as in Keras, Xavier uniform and 0, but 1 for ``b_f`` (Jozefowicz et
    al., ICML 2015), so that a state starts by keeping what it has.

    Args:
        num_networks: number of networks, ``N``.
        in_features: width of an input.
        hidden_size: width of a state, ``H``.
        num_steps: number of steps, ``S``.

    Raises:
        InputError: if a number is below 1.

    Example::

        >>> LSTMs(num_networks=3, in_features=6, hidden_size=4, num_steps=5)(torch.randn(2, 1, 5, 6)).shape
        torch.Size([2, 3, 5, 4])
    """

    @checked
    def __init__(self, num_networks: int, in_features: int, hidden_size: int, num_steps: int) -> None:
        super().__init__()
        check_at_least(1, num_networks=num_networks, in_features=in_features)
        check_at_least(1, hidden_size=hidden_size, num_steps=num_steps)
        self.num_networks, self.hidden_size, self.num_steps = num_networks, hidden_size, num_steps
        self.input = nn.Parameter(torch.empty(num_networks, 4 * hidden_size, in_features))
        self.recurrent = nn.Parameter(torch.empty(num_networks, 4 * hidden_size, hidden_size))
        self.bias = nn.Parameter(torch.empty(num_networks, 4 * hidden_size))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the initial values."""
        for weight in (self.input, self.recurrent):
            bound = (6 / (weight.shape[2] + self.hidden_size)) ** 0.5
            nn.init.uniform_(weight, -bound, bound)
        nn.init.zeros_(self.bias)
        self.bias[:, self.hidden_size : 2 * self.hidden_size] = 1.0

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, N, S, in_features]``, or ``[B, 1, S, in_features]`` for all networks, to ``h [B, N, S, H]``."""
        rows = x.transpose(0, 1).flatten(1, 2).expand(self.num_networks, -1, -1)
        read = torch.baddbmm(self.bias.unsqueeze(1), rows, self.input.mT)
        steps = unbind(read.unflatten(1, (-1, self.num_steps)), self.num_steps, dim=2)
        hidden: Any = torch.zeros_like(steps[0][..., : self.hidden_size])
        memory, states = hidden, []
        for step in steps:
            i, f, o, g = torch.baddbmm(step, hidden, self.recurrent.mT).chunk(4, dim=2)
            memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * memory.tanh()
            states.append(hidden)
        return torch.stack(states, dim=2).transpose(0, 1)
