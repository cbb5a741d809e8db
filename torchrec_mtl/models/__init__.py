"""The models, one file per paper. Each maps dense and sparse features to logits ``[B, T]``."""

from torchrec_mtl.models.aitm import AITM, AITMArch
from torchrec_mtl.models.base import MultiTaskModel
from torchrec_mtl.models.bpcm import BPCM, BPCMArch
from torchrec_mtl.models.cross_stitch import CrossStitch, CrossStitchArch
from torchrec_mtl.models.dcmt import DCMT, DCMTArch
from torchrec_mtl.models.ddpo import DDPO, DDPOArch
from torchrec_mtl.models.escm2 import ESCM2, ESCM2Arch
from torchrec_mtl.models.esmm import ESMM, ESMMArch
from torchrec_mtl.models.mmoe import MMoE, MMoEArch
from torchrec_mtl.models.omoe import OMoE, OMoEArch
from torchrec_mtl.models.ple import PLE, PLEArch
from torchrec_mtl.models.shared_bottom import SharedBottom, SharedBottomArch
from torchrec_mtl.models.single_task import SingleTask
from torchrec_mtl.models.tafe import TAFE, TAFEArch

__all__ = [
    "AITM",
    "BPCM",
    "DCMT",
    "DDPO",
    "ESCM2",
    "ESMM",
    "PLE",
    "TAFE",
    "AITMArch",
    "BPCMArch",
    "CrossStitch",
    "CrossStitchArch",
    "DCMTArch",
    "DDPOArch",
    "ESCM2Arch",
    "ESMMArch",
    "MMoE",
    "MMoEArch",
    "MultiTaskModel",
    "OMoE",
    "OMoEArch",
    "PLEArch",
    "SharedBottom",
    "SharedBottomArch",
    "SingleTask",
    "TAFEArch",
]
