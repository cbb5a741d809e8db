"""Objectives of multi-task models on a funnel: loss modules, and the functions that compute their terms."""

from torchrec_mtl.losses.counterfactual import CounterfactualLoss, dr_risk, imputation_loss, ips_risk
from torchrec_mtl.losses.delayed import DelayedLoss
from torchrec_mtl.losses.functional import (
    calibrator,
    cross_entropy,
    dependence,
    local_space_bce,
    step_propensity,
)
from torchrec_mtl.losses.modules import CalibratedLoss, CrossEntropyLoss, DependenceLoss, LocalSpaceLoss
from torchrec_mtl.losses.values import FunnelAndValues

__all__ = [
    "CalibratedLoss",
    "CounterfactualLoss",
    "CrossEntropyLoss",
    "DelayedLoss",
    "DependenceLoss",
    "FunnelAndValues",
    "LocalSpaceLoss",
    "calibrator",
    "cross_entropy",
    "dependence",
    "dr_risk",
    "imputation_loss",
    "ips_risk",
    "local_space_bce",
    "step_propensity",
]
