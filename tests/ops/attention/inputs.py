"""Tensors and a module for the tests of attention."""

import torch

from torchrec_mtl import ops


def arguments(batch, rows, inputs, dim, dtype=torch.float64, scale=1.0, seed=0):
    torch.manual_seed(seed)
    sets = [torch.randn(batch, count, dim, dtype=torch.float64) for count in (rows, inputs)]
    weights = [torch.randn(dim, dim, dtype=torch.float64) / dim**0.5 for _ in range(3)]
    tensors = [sets[0] * scale, sets[1], *weights]
    return [x.to(dtype).requires_grad_() for x in tensors]


class SelfAttention(torch.nn.Module):
    def __init__(self, backend):
        super().__init__()
        self.backend = backend
        self.query, self.key, self.value = (torch.nn.Parameter(torch.randn(8, 8)) for _ in range(3))

    def forward(self, x):
        return ops.attention(x, x, self.query, self.key, self.value, 2, self.backend)
