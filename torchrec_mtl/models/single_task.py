"""Single-Task: a model a task, the base that the papers measure gains against."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.errors import InputError, check_sizes
from torchrec_mtl.modules import FeatureArch, Tower, as_features, initialize_linear_layers
from torchrec_mtl.tasks import TaskForest


class SingleTask(nn.Module):
    """An MLP a task with embedding tables of its own: nothing is shared (TAFE section 4.1.2; BPCM's "MLP").

    Its parameters are ``T`` times one model's, as in TAFE figure 8.

    Args:
        features: a `FeatureArch`, or the tables alone, of which each task gets a copy; or a sequence of ``T``, one a
            task.
        tasks: ``T`` tasks.
        layer_sizes: hidden layers of each task's MLP, ReLU between; the papers' by default.
        dropout: probability of dropping a hidden unit in training.

    Raises:
        InputError: if there is a sequence of features of another length, a layer's size is below 1, or ``dropout`` is
            not from 0 to 1.

    Example::

        >>> from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
        >>> from torchrec_mtl import TaskChain
        >>> table = EmbeddingBagConfig(name="t", embedding_dim=4, num_embeddings=9, feature_names=["item"])
        >>> model = SingleTask(EmbeddingBagCollection(tables=[table]), TaskChain(["click", "purchase"]))
        >>> ids = KeyedJaggedTensor.from_lengths_sync(["item"], torch.tensor([3, 5]), torch.tensor([1, 1]))
        >>> model(torch.empty(2, 0), ids).shape
        torch.Size([2, 2])
    """

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
            own = [as_features(features)]
            own += [copy.deepcopy(own[0]) for _ in range(len(tasks) - 1)]
            for copied in own[1:]:
                initialize_linear_layers(*([copied.dense_arch] if copied.dense_arch is not None else []))
        else:
            own = [as_features(of_task) for of_task in features]
        if len(own) != len(tasks):
            raise InputError(f"`features` (a sequence of {len(own)}) must be one a task ({len(tasks)})")
        self.features = nn.ModuleList(own)
        self.over_arch = nn.ModuleList()
        for of_task in own:
            with torch.device(of_task.dense_device):
                self.over_arch.append(Tower(of_task.out_features, layer_sizes, dropout))
        initialize_linear_layers(self.over_arch)

    def forward(self, dense_features: Tensor, sparse_features: KeyedJaggedTensor) -> Tensor:
        """``[B, num_dense]`` and the sparse features to marginal logits ``[B, T]``."""
        archs = zip(self.features, self.over_arch, strict=True)
        logits = [tower(features(dense_features, sparse_features)) for features, tower in archs]
        return torch.cat(logits, dim=1)

    def start_from_base_rates(self, base_rates: Tensor) -> None:
        """Lets the untrained model predict each task's share of positives, ``[T]``.

        Raises:
            InputError: if one is not between 0 and 1.
        """
        for tower, rate in zip(self.over_arch, base_rates.tolist(), strict=True):
            assert isinstance(tower, Tower)
            tower.start_from_base_rate(rate)
