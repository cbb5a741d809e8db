"""The models, one file per paper. Each maps dense and sparse features to logits ``[B, T]``."""

from torchrec_mtl.models.adatt import AdaTT, AdaTTArch
from torchrec_mtl.models.aitm import AITM, AITMArch
from torchrec_mtl.models.base import MultiTaskModel
from torchrec_mtl.models.bpcm import BPCM, BPCMArch
from torchrec_mtl.models.cross_stitch import CrossStitch, CrossStitchArch
from torchrec_mtl.models.dbmtl import DBMTL, DBMTLArch
from torchrec_mtl.models.dcmt import DCMT, DCMTArch
from torchrec_mtl.models.ddpo import DDPO, DDPOArch
from torchrec_mtl.models.escm2 import ESCM2, ESCM2Arch
from torchrec_mtl.models.esmm import ESMM, ESMMArch
from torchrec_mtl.models.home import HoME, HoMEArch
from torchrec_mtl.models.mmoe import MMoE, MMoEArch
from torchrec_mtl.models.mose import MoSE, MoSEArch
from torchrec_mtl.models.mran import MRAN, MRANArch
from torchrec_mtl.models.omoe import OMoE, OMoEArch
from torchrec_mtl.models.pepnet import PEPNet, PEPNetArch
from torchrec_mtl.models.ple import PLE, PLEArch
from torchrec_mtl.models.resflow import ResFlow, ResFlowArch
from torchrec_mtl.models.shared_bottom import SharedBottom, SharedBottomArch
from torchrec_mtl.models.single_task import SingleTask
from torchrec_mtl.models.sluice import Sluice, SluiceArch
from torchrec_mtl.models.stem import STEM, STEMArch
from torchrec_mtl.models.tafe import TAFE, TAFEArch

__all__ = [
    "AITM",
    "BPCM",
    "DBMTL",
    "DCMT",
    "DDPO",
    "ESCM2",
    "ESMM",
    "MRAN",
    "PLE",
    "STEM",
    "TAFE",
    "AITMArch",
    "AdaTT",
    "AdaTTArch",
    "BPCMArch",
    "CrossStitch",
    "CrossStitchArch",
    "DBMTLArch",
    "DCMTArch",
    "DDPOArch",
    "ESCM2Arch",
    "ESMMArch",
    "HoME",
    "HoMEArch",
    "MMoE",
    "MMoEArch",
    "MRANArch",
    "MoSE",
    "MoSEArch",
    "MultiTaskModel",
    "OMoE",
    "OMoEArch",
    "PEPNet",
    "PEPNetArch",
    "PLEArch",
    "ResFlow",
    "ResFlowArch",
    "STEMArch",
    "SharedBottom",
    "SharedBottomArch",
    "SingleTask",
    "Sluice",
    "SluiceArch",
    "TAFEArch",
]
