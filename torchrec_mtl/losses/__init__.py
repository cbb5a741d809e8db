"""Objectives of multi-task models on a funnel: loss modules, and the functions that compute their terms."""

from torchrec_mtl.losses.counterfactual import CounterfactualLoss, dr_risk, imputation_loss, ips_risk
from torchrec_mtl.losses.dcmt import DCMTLoss
from torchrec_mtl.losses.ddpo import DDPOLoss
from torchrec_mtl.losses.delayed import DelayedLoss
from torchrec_mtl.losses.functional import (
    calibrator,
    cross_entropy,
    dependence,
    difference_propensity,
    exit_depth,
    local_space_bce,
    local_space_dependence,
    step_propensity,
)
from torchrec_mtl.losses.modules import CalibratedLoss, CrossEntropyLoss, DependenceLoss, ExitDepthLoss, LocalSpaceLoss
from torchrec_mtl.losses.pointwise import FocalLoss, LabelSmoothingLoss
from torchrec_mtl.losses.ranking import JRCLoss, PairwiseLoss, listwise, pairwise
from torchrec_mtl.losses.values import FunnelAndValues

__all__ = [
    "CalibratedLoss",
    "CounterfactualLoss",
    "CrossEntropyLoss",
    "DCMTLoss",
    "DDPOLoss",
    "DelayedLoss",
    "DependenceLoss",
    "ExitDepthLoss",
    "FocalLoss",
    "FunnelAndValues",
    "JRCLoss",
    "LabelSmoothingLoss",
    "LocalSpaceLoss",
    "PairwiseLoss",
    "calibrator",
    "cross_entropy",
    "dependence",
    "difference_propensity",
    "dr_risk",
    "exit_depth",
    "imputation_loss",
    "ips_risk",
    "listwise",
    "local_space_bce",
    "local_space_dependence",
    "pairwise",
    "step_propensity",
]
