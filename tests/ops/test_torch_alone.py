"""The operations in a program that has torch and nothing else that this library uses."""

import subprocess
import sys

PROGRAM = """
import sys
for name in ("torchrec", "fbgemm_gpu", "polars", "pyarrow", "pandas", "sklearn", "torchx", "triton"):
    sys.modules[name] = None  # an import of it fails

import torch
from torchrec_mtl import ops

square, row = torch.randn(2, 4, 4), torch.ones(2, 4)
layers = ops.GeneratorWeights(torch.randn(2, 3, 4), square, square, square, row, row)
square, row = torch.randn(2, 6, 4, 4), torch.ones(2, 6, 4)
stack = ops.InducingStack(layers, ops.AdapterWeights(row, square, square, square, row, row), num_heads=2)
inputs = torch.randn(5, 7, 4, requires_grad=True)
adapted = ops.inducing_stack(inputs, torch.rand(5, 3), stack)
attended = ops.attention(inputs, inputs, *torch.randn(3, 4, 4), num_heads=2)
(adapted.sum() + attended.sum()).backward()
print(tuple(adapted.shape), tuple(attended.shape), bool(inputs.grad.isfinite().all()))
"""


def test_attention_and_the_stack_run():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.stdout == "(5, 6, 4) (5, 7, 4) True\n", done.stderr
