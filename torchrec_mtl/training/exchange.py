"""What rounds embeddings and their gradients on the way between ranks."""

from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from torch import Tensor
from torchrec.distributed.fbgemm_qcomm_codec import (
    CommType,
    FbgemmQuantizedCommCodec,
    QCommsConfig,
    get_qcomm_codecs_registry,
)
from torchrec.distributed.types import QuantizedCommCodecs

from torchrec_mtl.errors import InputError


class _ScaledUp(FbgemmQuantizedCommCodec):
    """Rounds to fp16 what is too small for it: it is scaled up before, and down in fp32.

    TorchRec's own ``loss_scale`` scales down in fp16, where it is lost again.
    """

    def __init__(self, scale: float) -> None:
        super().__init__(SparseType.FP16, is_fwd=False)
        self.scale = scale

    def encode(self, input_tensor: Tensor, ctx: Any = None) -> Tensor:
        return super().encode(input_tensor * self.scale, ctx)

    def decode(self, input_grad: Tensor, ctx: Any = None) -> Tensor:
        return super().decode(input_grad, ctx) / self.scale


def exchange_codecs(precision: str, batch_size: int, device: torch.device) -> dict[str, QuantizedCommCodecs] | None:
    """The codecs for TorchRec's sharders; None if nothing is rounded.

    Args:
        precision: ``exchange_precision`` of the run, see `TrainingConfig`.
        batch_size: number of rows of a step, by which the gradient of one is divided in that of the mean loss.
        device: device of the ranks.

    Raises:
        InputError: if ranks cannot send numbers of this type.
    """
    if precision == "bf16" and device.type == "cpu":
        rule = "must be 'fp32' or 'fp16' on a CPU, whose ranks cannot send bf16"
        raise InputError(f"`exchange_precision` (={precision!r}) {rule}")
    kind = CommType(precision)
    found: dict[str, QuantizedCommCodecs] | None = get_qcomm_codecs_registry(QCommsConfig(kind, kind), device=device)
    if precision == "fp16":
        for codecs in (found or {}).values():
            codecs.backward = _ScaledUp(float(batch_size))
    return found
