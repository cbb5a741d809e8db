"""Attention operations. Each function checks its arguments, chooses a backend and calls it."""

from torchrec_mtl.ops.attention import attention
from torchrec_mtl.ops.inducing_attention import (
    AdapterWeights,
    GeneratorWeights,
    InducingLayer,
    InducingStack,
    adapter_layer,
    inducing_layer,
    inducing_stack,
)

__all__ = [
    "AdapterWeights",
    "GeneratorWeights",
    "InducingLayer",
    "InducingStack",
    "adapter_layer",
    "attention",
    "inducing_layer",
    "inducing_stack",
]
