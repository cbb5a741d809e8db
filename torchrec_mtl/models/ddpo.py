"""DDPO: direct dual propensity optimization (Su et al., SIGIR 2024; the authors' code is TL-UESTC/DDPO).

Symbols: ``f_t`` is a task's own representation; ``f^c`` is that of the conversion propensity of a task that needs
another; a causal transfer module (CTM) weighs what it receives against ``f_t``. All are ``[B, D]``. The paper has click
and purchase; here ``f^o`` is the representation of the task that is needed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import check_sizes
from torchrec_mtl.models.base import MultiTaskModel
from torchrec_mtl.modules import (
    FeatureArch,
    InformationTransfer,
    MarginalFromConditional,
    TaskTowers,
    Tower,
    as_features,
    conditional_rates,
    give_heads,
    hidden_layers,
    initialize_linear_layers,
)
from torchrec_mtl.tasks import TaskForest


class CausalTransfer(nn.Module):
    """DDPO eq. (14), ``theta_t(T_o(f^o, f_t), T_c(f^c, f_t))``; ``T``, eq. (12) and (13), is `InformationTransfer`.

    As in the authors' code, ``f^o`` and ``f^c`` go through a ReLU layer first, and ``theta_t`` ends in a ReLU.

    Args:
        features: width of the representations, ``D``.
        dropout: probability of dropping a unit of these layers during training.
    """

    def __init__(self, features: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.click_information = hidden_layers(features, [features], dropout)
        self.conversion_information = hidden_layers(features, [features], dropout)
        self.click_transfer = InformationTransfer(features)
        self.conversion_transfer = InformationTransfer(features)
        self.fusion = hidden_layers(2 * features, [features], dropout)

    def forward(self, needed: Tensor, conversion: Tensor, own: Tensor) -> Tensor:
        """Maps ``f^o``, ``f^c`` and ``f_t``, ``[B, D]`` each, to ``[B, D]``."""
        by_click = self.click_transfer(self.click_information(needed), own)
        by_conversion = self.conversion_transfer(self.conversion_information(conversion), own)
        return self.fusion(torch.cat([by_click, by_conversion], dim=1))


class DDPOArch(nn.Module):
    """One representation per task and one per conversion propensity, causal transfers, and linear outputs.

    The outputs are conditional probabilities; their products are the marginal ones, ``t^`` in the paper. The authors'
    code also applies batch normalisation to every layer, and has hidden layers in the outputs; the paper has one linear
    layer there, as here.

    Args:
        in_features: width of the flattened embeddings, ``F * D``.
        tasks: the ``T`` tasks; a chain of 2 in the paper.
        tower_layer_sizes, dropout: see `DDPO`.

    Attributes:
        output_names: names of the tensors that `outputs` returns: the marginal ``logits [B, T]``, ``conditional_logits
            [B, T]`` and ``conversion_logits [B, E]``, of ``r^c``, one for each of the ``E`` tasks that need another.

    Raises:
        InputError: see `DDPO`.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> arch = DDPOArch(6 * 8, TaskChain(["click", "cart", "purchase"]))
        >>> {name: tuple(output.shape) for name, output in arch.outputs(torch.randn(2, 6, 8)).items()}
        {'logits': (2, 3), 'conditional_logits': (2, 3), 'conversion_logits': (2, 2)}
    """

    output_names = ("logits", "conditional_logits", "conversion_logits")

    @checked
    def __init__(
        self,
        in_features: int,
        tasks: TaskForest,
        *,
        tower_layer_sizes: Sequence[int] = (256, 128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        tasks.require_edges("DDPO")
        check_sizes(1, tower_layer_sizes=tower_layer_sizes)
        width = tower_layer_sizes[-1]
        self.tasks, edges = tasks, tasks.funnel.edges
        self.representations = nn.ModuleList(hidden_layers(in_features, tower_layer_sizes, dropout) for _ in tasks)
        self.conversions = nn.ModuleList(hidden_layers(in_features, tower_layer_sizes, dropout) for _ in edges)
        self.transfers = nn.ModuleList(CausalTransfer(width, dropout) for _ in edges)
        self.towers = TaskTowers(len(tasks), width, layer_sizes=())
        self.conversion_towers = nn.ModuleList(Tower(width, []) for _ in edges)
        self.marginal = MarginalFromConditional(tasks)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Maps ``[B, F, D]`` or ``[B, F * D]`` to marginal logits ``[B, T]``."""
        return self.marginal(self._conditional(embeddings)[0])

    def outputs(self, embeddings: Tensor) -> dict[str, Tensor]:
        """Maps ``[B, F, D]`` or ``[B, F * D]`` to the tensors named in `output_names`."""
        conditional_logits, conversions = self._conditional(embeddings)
        propensities = [tower(x) for tower, x in zip(self.conversion_towers, conversions, strict=True)]
        return {
            "logits": self.marginal(conditional_logits),
            "conditional_logits": conditional_logits[:, : len(self.tasks.funnel)],
            "conversion_logits": torch.cat([conditional_logits[:, :0], *propensities], dim=1),
        }

    def _conditional(self, embeddings: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns the conditional logits ``[B, T]``, and ``f^c [B, D]`` of each task that needs another."""
        x = embeddings.flatten(1)
        own = [representation(x) for representation in self.representations]
        conversions, states = [conversion(x) for conversion in self.conversions], list(own)
        steps = zip(self.transfers, conversions, self.tasks.funnel.edges, strict=True)
        for transfer, conversion, (parent, task) in steps:
            states[task] = transfer(own[parent], conversion, own[task])
        return self.towers(states), conversions

    def start_from_base_rates(self, base_rates: Tensor) -> None:
        """See `MultiTaskModel`; the towers predict conditional probabilities."""
        rates = conditional_rates(base_rates, self.tasks.funnel.parents)
        self.towers.start_from_base_rates(rates)
        for tower, (_, child) in zip(self.conversion_towers, self.tasks.funnel.edges, strict=True):
            assert isinstance(tower, Tower)
            tower.start_from_base_rate(rates[child].item())


class DDPO(MultiTaskModel):
    """`DDPOArch` on top of the features. Train it with `torchrec_mtl.losses.DDPOLoss`.

    Args:
        features: a `FeatureArch`, or a bare embedding bag collection where there are no dense features.
        tasks: the ``T`` tasks, some of which need another.
        tower_layer_sizes: layer widths of each representation; the last, ``D``, is that of what is transferred.
        dropout: probability of dropping a unit of the representations and of the transfers' layers during training.

    Raises:
        InputError: if there are several tasks and none needs another, there is no layer, a layer width is below 1, or
            ``dropout`` is not between 0 and 1.
    """

    @checked
    def __init__(
        self,
        features: FeatureArch | nn.Module,
        tasks: TaskForest,
        *,
        tower_layer_sizes: Sequence[int] = (256, 128, 64),
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.features = as_features(features)
        with torch.device(self.features.dense_device):
            self.over_arch = DDPOArch(
                self.features.out_features,
                tasks,
                tower_layer_sizes=tower_layer_sizes,
                dropout=dropout,
            )
        initialize_linear_layers(self.over_arch)
        give_heads(self.over_arch.towers, tasks)
