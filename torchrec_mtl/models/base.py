"""What every model does with its features and its over arch, whatever paper it comes from."""

from typing import Any

from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor


class MultiTaskModel(nn.Module):
    """Features followed by an over arch, which gives one marginal logit per task.

    Abstract: the constructor of each model sets ``features``, a `torchrec_mtl.modules.FeatureArch`, and ``over_arch``,
    a module that maps the output of ``features``, ``[B, sum(D_f)]``, to logits ``[B, T]`` and has
    ``start_from_base_rates``. A model that does something else in between overrides `embed`. Tasks that are values have
    the outputs of their kinds, ``[B, L]``: the last step of each constructor is `torchrec_mtl.modules.give_heads`.

    A loss reads further outputs of a model by name. An over arch with outputs beyond the logits lists all names in
    ``output_names`` and returns all of them from ``outputs``. TorchRec's pipelines trace ``outputs``, so it only calls
    modules and leaves any other logic to them.
    """

    features: nn.Module
    over_arch: nn.Module

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the tensors that `outputs` returns."""
        return getattr(self.over_arch, "output_names", ("logits",))

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """Maps ``[B, num_dense]`` and the sparse features to marginal logits ``[B, T]``."""
        return self.over_arch(self.embed(dense_features, sparse_features))

    def outputs(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> dict[str, Tensor]:
        """Returns the logits and everything else that a loss can read, by the names in `output_names`."""
        embeddings = self.embed(dense_features, sparse_features)
        if self.output_names == ("logits",):
            return {"logits": self.over_arch(embeddings)}
        over_arch: Any = self.over_arch
        return over_arch.outputs(embeddings)

    def embed(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """Maps ``[B, num_dense]`` and the sparse features to the input of the over arch."""
        return self.features(dense_features, sparse_features)

    def start_from_base_rates(self, base_rates: Tensor) -> None:
        """Sets the output biases so that the untrained model predicts each task's share of positives, ``[T]``.

        Values start by `torchrec_mtl.modules.start_values`.

        Raises:
            InputError: if there is not one rate per task, or a rate is not between 0 and 1; in a model of conditional
                probabilities, also if a task's rate is not below the rate of the task it needs.
        """
        over_arch: Any = self.over_arch
        over_arch.start_from_base_rates(base_rates)
