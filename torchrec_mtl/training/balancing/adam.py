"""Adam for the few weights that a method itself trains."""

import torch
from torch import Tensor, nn

from torchrec_mtl.training.balancing.method import state

_BETAS, _EPS = (0.9, 0.999), 1e-8


class WeightAdam(nn.Module):
    """Adam (Kingma, Ba, ICLR 2015) with its state in buffers, so that a checkpoint of the model holds it.

    Args:
        num_tasks: number of weights, ``T``.
        learning_rate: its learning rate.
    """

    first: Tensor
    second: Tensor
    steps: Tensor

    def __init__(self, num_tasks: int, learning_rate: float) -> None:
        super().__init__()
        self.learning_rate = learning_rate
        self.register_buffer("first", state(torch.zeros(num_tasks)))
        self.register_buffer("second", state(torch.zeros(num_tasks)))
        self.register_buffer("steps", state(torch.zeros(())))

    def forward(self, gradient: Tensor) -> Tensor:
        """Counts a gradient ``[T]``, and returns what is to be taken from the weights, ``[T]``, on its device."""
        given, (of_first, of_second) = gradient.to(self.first), _BETAS
        self.steps += 1
        self.first.lerp_(given, 1 - of_first)
        self.second.mul_(of_second).addcmul_(given, given, value=1 - of_second)
        mean, square = self.first / (1 - of_first**self.steps), self.second / (1 - of_second**self.steps)
        return (self.learning_rate * mean / (square.sqrt() + _EPS)).to(gradient)
