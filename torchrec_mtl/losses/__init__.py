"""Objectives of multi-task models on a funnel: modules, and the terms they are made of."""

from torchrec_mtl.losses.functional import (
    calibrator,
    cross_entropy,
    dependence,
    local_space_bce,
    step_propensity,
)
from torchrec_mtl.losses.modules import CalibratedLoss, CrossEntropyLoss, DependenceLoss, LocalSpaceLoss

__all__ = [
    "CalibratedLoss",
    "CrossEntropyLoss",
    "DependenceLoss",
    "LocalSpaceLoss",
    "calibrator",
    "cross_entropy",
    "dependence",
    "local_space_bce",
    "step_propensity",
]
