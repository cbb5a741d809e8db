"""Metrics of a funnel: pure functions, `METRICS` by name, and :class:`MultiTaskMetrics`, which measures them.

Higher is better for ``auc`` and ``gauc``, lower for ``log_loss`` and ``normalized_entropy``, and nearer to 1 for
``calibration``. Of values, higher is better for ``gini`` and ``lift``, lower for ``rmse``, ``mae`` and ``pinball``, and
nearer to 1 for ``value_calibration``. Of classes, higher is better for ``class_accuracy``, and lower for
``class_log_loss`` and ``class_mae``.
"""

from torchrec_mtl.metrics.classes import class_accuracy, class_log_loss, class_mae
from torchrec_mtl.metrics.metric import AUCS, METRICS, Metric, find_metric, measured_as
from torchrec_mtl.metrics.multi_task import MultiTaskMetrics
from torchrec_mtl.metrics.parts import Parts
from torchrec_mtl.metrics.probability import (
    CalibrationCurve,
    calibration,
    calibration_curve,
    conditional_logits,
    log_conditional,
    log_loss,
    normalized_entropy,
)
from torchrec_mtl.metrics.ranking import auc, gain, gauc, rela_impr, suspicious
from torchrec_mtl.metrics.values import gini, lift, mae, pinball, rmse, value_calibration, value_curve

__all__ = [
    "AUCS",
    "METRICS",
    "CalibrationCurve",
    "Metric",
    "MultiTaskMetrics",
    "Parts",
    "auc",
    "calibration",
    "calibration_curve",
    "class_accuracy",
    "class_log_loss",
    "class_mae",
    "conditional_logits",
    "find_metric",
    "gain",
    "gauc",
    "gini",
    "lift",
    "log_conditional",
    "log_loss",
    "mae",
    "measured_as",
    "normalized_entropy",
    "pinball",
    "rela_impr",
    "rmse",
    "suspicious",
    "value_calibration",
    "value_curve",
]
