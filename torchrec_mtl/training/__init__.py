"""Training of any module that maps dense and sparse features to logits ``[B, T]``."""

from torchrec_mtl.training.train_wrapper import MultiTaskTrain

__all__ = ["MultiTaskTrain"]
