"""A metric that the library does not have, as a user would define it."""

import math

from sklearn.metrics import average_precision_score
from torch import Tensor

from torchrec_mtl.metrics import METRICS, Metric


def average_precision(logits: Tensor, labels: Tensor, weights: Tensor) -> float:
    """Average precision by scikit-learn; NaN if one of the classes is absent."""
    if not 0 < labels.mean() < 1:
        return math.nan
    return float(average_precision_score(labels, logits, sample_weight=weights))


AVERAGE_PRECISION = Metric(average_precision, "average precision", "higher", "ranking")
NAMED = "tests.foreign_metric:AVERAGE_PRECISION"  # on a command line
KNOWN = {**METRICS, "average_precision": AVERAGE_PRECISION}
