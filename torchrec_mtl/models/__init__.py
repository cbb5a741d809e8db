"""The models, one paper a file: embeddings, dense arch and over arch to logits ``[B, T]``."""

from torchrec_mtl.models.base import FieldModel, FlatModel
from torchrec_mtl.models.bpcm import BPCM, BPCMArch
from torchrec_mtl.models.shared_bottom import SharedBottom, SharedBottomArch
from torchrec_mtl.models.single_task import SingleTask
from torchrec_mtl.models.tafe import TAFE, TAFEArch

__all__ = [
    "BPCM",
    "TAFE",
    "BPCMArch",
    "FieldModel",
    "FlatModel",
    "SharedBottom",
    "SharedBottomArch",
    "SingleTask",
    "TAFEArch",
]
