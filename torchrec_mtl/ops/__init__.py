"""Attention kernels behind functions that check, choose a backend and call it."""

from torchrec_mtl.ops.attention import attention
from torchrec_mtl.ops.inducing_attention import indicator_attention, inducing_attention

__all__ = ["attention", "indicator_attention", "inducing_attention"]
