"""Metrics of a funnel: pure functions, `METRICS` that names them, and :class:`MultiTaskMetrics` that measures by name.

Higher is better: ``auc``, ``gauc``. Lower is better: ``log_loss``, ``normalized_entropy``. Nearer to 1 is better:
``calibration``.
"""

from torchrec_mtl.metrics.metric import METRICS, Metric, find_metric
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
    "METRICS",
    "CalibrationCurve",
    "Metric",
    "MultiTaskMetrics",
    "auc",
    "calibration",
    "calibration_curve",
    "conditional_logits",
    "find_metric",
    "gain",
    "gauc",
    "log_loss",
    "normalized_entropy",
    "rela_impr",
    "suspicious",
]
