"""What every model does with its features and its over arch, whatever paper it is from."""

from typing import Any

from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


class MultiTaskModel(nn.Module):
    """Features, then an over arch, to one marginal logit a task.

    Abstract: a model's own constructor sets ``features``, a `torchrec_mtl.modules.FeatureArch`, and ``over_arch``, a
    module that maps their output ``[B, sum(D_f)]`` to logits ``[B, T]`` and has ``start_from_base_rates``. A model that
    does something else in between overrides `embed`.

    What a loss can read beyond the logits, a model gives by name: an over arch with more to give lists the names in
    ``output_names`` and returns all of them from ``outputs``, which TorchRec's pipelines trace, so it calls modules
    and leaves anything clever to them.
    """

    features: nn.Module
    over_arch: nn.Module

    @property
    def output_names(self) -> tuple[str, ...]:
        """What `outputs` returns."""
        return getattr(self.over_arch, "output_names", ("logits",))

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """``[B, num_dense]`` and the sparse features to marginal logits ``[B, T]``."""
        return self.over_arch(self.embed(dense_features, sparse_features))

    def outputs(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> dict[str, Tensor]:
        """The same with all else that a loss can read: `output_names` and their tensors."""
        embeddings = self.embed(dense_features, sparse_features)
        if self.output_names == ("logits",):
            return {"logits": self.over_arch(embeddings)}
        over_arch: Any = self.over_arch
        return over_arch.outputs(embeddings)

    def embed(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """``[B, num_dense]`` and the sparse features to what the over arch takes."""
        return self.features(dense_features, sparse_features)

    def start_from_base_rates(self, base_rates: Tensor) -> None:
        """Lets the untrained model predict each task's share of positives, ``[T]``.

        Raises:
            InputError: if they are not one a task, one is not between 0 and 1, or a model of conditional
                probabilities is given one that does not fall from a task to those after it.
        """
        over_arch: Any = self.over_arch
        over_arch.start_from_base_rates(base_rates)
