"""Single-Task: one model per task, the baseline against which the papers measure gains."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import InputError, check_sizes
from torchrec_mtl.modules import FeatureArch, Tower, as_features, give_heads, initialize_linear_layers
from torchrec_mtl.modules.towers import start_towers
from torchrec_mtl.tasks import TaskForest


class SingleTask(nn.Module):
    """One MLP with separate embedding tables per task: nothing is shared (TAFE section 4.1.2; BPCM's "MLP").

    It has ``T`` times as many parameters as one model, as in TAFE figure 8.

    Args:
        features: a `FeatureArch`, or a bare embedding bag collection where there are no dense features, of which each
            task gets a copy; or a sequence of ``T`` of these, one per task.
        tasks: the ``T`` tasks.
        layer_sizes: hidden layer widths of each task's MLP, which uses ReLU; the papers' sizes by default.
        dropout: probability of dropping a hidden unit during training.

    Raises:
        InputError: if a sequence of features has another length than ``T``, a layer width is below 1, or ``dropout`` is
            not between 0 and 1.

    Example::

        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
        >>> from torchrec_mtl import TaskChain
        >>> table = EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=9, feature_names=["item"])
        >>> model = SingleTask(EmbeddingBagCollection(tables=[table]), TaskChain(["click", "purchase"]))
        >>> ids = KeyedJaggedTensor.from_lengths_sync(["item"], torch.tensor([3, 5]), torch.tensor([1, 1]))
        >>> model(torch.empty(2, 0), ids).shape
        torch.Size([2, 2])
    """

    @checked
    def __init__(
        self,
        features: FeatureArch | nn.Module | Sequence[FeatureArch | nn.Module],
        tasks: TaskForest,
        *,
        layer_sizes: Sequence[int] = (256, 128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        check_sizes(layer_sizes=layer_sizes)
        if isinstance(features, nn.Module):
            first = as_features(features)
            copies = [copy.deepcopy(first) for _ in range(len(tasks) - 1)]
            initialize_linear_layers(*copies)
            archs = [first, *copies]
        else:
            archs = [as_features(arch) for arch in features]
        if len(archs) != len(tasks):
            raise InputError(f"`features` (a sequence of {len(archs)}) must be one a task ({len(tasks)})")
        self.features = nn.ModuleList(archs)
        reads_dense = [arch.dense_arch is not None for arch in archs]
        self._gets_dense = [reads or not any(reads_dense) for reads in reads_dense]
        self.over_arch = nn.ModuleList()
        for arch in archs:
            with torch.device(arch.dense_device):
                self.over_arch.append(Tower(arch.out_features, layer_sizes, dropout))
        initialize_linear_layers(self.over_arch)
        give_heads(self.over_arch, tasks)

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """Maps ``[B, num_dense]`` and the sparse features to marginal logits ``[B, T]``."""
        logits = []
        for features, tower, gets_dense in zip(self.features, self.over_arch, self._gets_dense, strict=True):
            dense = dense_features if gets_dense else dense_features[:, :0]  # of use to another task alone
            logits.append(tower(features(dense, sparse_features)))
        return torch.cat(logits, dim=1)

    @checked
    def start_from_base_rates(self, base_rates: Tensor) -> None:
        """Sets the output biases so that the untrained model predicts each task's share of positives, ``[T]``.

        Raises:
            InputError: if there is not one rate per task, or a rate is not between 0 and 1.
        """
        start_towers(self.over_arch, base_rates)
