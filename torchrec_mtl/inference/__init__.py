"""What is done with a trained model: predictions, their calibration. Takes any nn.Module."""

from torchrec_mtl.inference.calibration import Calibration, fit_calibration
from torchrec_mtl.inference.predictor import Predictions, Predictor

__all__ = ["Calibration", "Predictions", "Predictor", "fit_calibration"]
