"""Metrics of a funnel: pure functions, and :class:`MultiTaskMetrics`, which collects and names them."""

from torchrec_mtl.metrics.multi_task import MultiTaskMetrics
from torchrec_mtl.metrics.probability import (
    CalibrationCurve,
    calibration,
    calibration_curve,
    conditional_logits,
    log_loss,
    normalized_entropy,
)
from torchrec_mtl.metrics.ranking import auc, gain, gauc, rela_impr, suspicious

__all__ = [
    "CalibrationCurve",
    "MultiTaskMetrics",
    "auc",
    "calibration",
    "calibration_curve",
    "conditional_logits",
    "gain",
    "gauc",
    "log_loss",
    "normalized_entropy",
    "rela_impr",
    "suspicious",
]
