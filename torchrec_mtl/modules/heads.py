"""The outputs of tasks that are values: from a tower's last layer to raw units.

The last layer of a value learns in units of the training labels' deviation, around their mean, and the head puts both
back. So a tower starts at the truth of a constant x and learns at the speed of a logit, whatever the currency is,
and everything that reads the outputs (losses, metrics, a package) has raw units.
"""

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import InputError
from torchrec_mtl.kinds import ZILN, Classes, Kind, Ordinal, Quantile
from torchrec_mtl.modules.initialization import initialize_linear_layers
from torchrec_mtl.modules.towers import Tower
from torchrec_mtl.tasks import TaskForest

SMALLEST_GAP = 1e-6  # between two cumulative logits
SMALLEST_SIGMA = 2.0**-11.5  # the square root of float32's epsilon, as in google/lifetime_value


class LabelStatistics(NamedTuple):
    """What the labels of a value are, where they count: their number, and what a head starts from.

    ``mean`` and ``deviation`` are of all of them, ``log_mean`` and ``log_deviation`` of the logarithm of those above 0,
    of which there are ``num_positive``. ``of_classes`` is the number of each class, where they are classes.
    """

    num_rows: int
    mean: float
    deviation: float
    num_positive: int
    log_mean: float
    log_deviation: float
    of_classes: tuple[int, ...] = ()


class ValueHead(nn.Module):
    """A linear layer, and the way back to raw units: ``shift + exp(log_scale) * linear``, then what the kind needs.

    ``sigma`` of `ZILN` is a softplus, of at least ``2^-11.5``. Quantiles are sorted, which never raises their loss
    (Chernozhukov et al., 2010). The cumulative logits of `Ordinal` are one linear output less thresholds, which are
    parameters, sorted.

    Args:
        kind: kind of the task.
        task: name of the task.
        in_features: width of the input.

    Example::

        >>> head = ValueHead(Quantile((0.5, 0.9)), "dwell", 4)
        >>> head.start(LabelStatistics(100, mean=20.0, deviation=10.0, num_positive=0, log_mean=0, log_deviation=1))
        >>> head(torch.zeros(1, 4))
        tensor([[20.0000, 32.8155]], grad_fn=<SortBackward0>)
    """

    shift: Tensor
    log_scale: Tensor  # of 0, as TorchRec makes buffers of modules on meta

    @checked
    def __init__(self, kind: Kind, task: str, in_features: int) -> None:
        super().__init__()
        self.kind, self.task = kind, task
        self.linear = nn.Linear(in_features, 1 if isinstance(kind, Ordinal) else kind.num_outputs)
        initialize_linear_layers(self.linear)
        self.thresholds = nn.Parameter(torch.empty(kind.num_outputs)) if isinstance(kind, Ordinal) else None
        self.register_buffer("shift", torch.empty(kind.num_outputs))
        self.register_buffer("log_scale", torch.empty(kind.num_outputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the units to those of the standard normal distribution, and thresholds to 0."""
        if self.thresholds is not None:
            nn.init.zeros_(self.thresholds)
        nn.init.zeros_(self.shift)
        nn.init.zeros_(self.log_scale)

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, in_features]`` to the outputs of the kind, ``[B, num_outputs]``."""
        raw = self.shift + self.log_scale.exp() * self.linear(x)
        if self.thresholds is not None:
            return (raw - self.thresholds).sort(dim=1, descending=True).values
        if isinstance(self.kind, ZILN):
            sigma = F.softplus(raw[:, 2:]).clamp(min=SMALLEST_SIGMA)
            return torch.cat([raw[:, :2], sigma], dim=1)
        return raw.sort(dim=1).values if isinstance(self.kind, Quantile) else raw

    @torch.no_grad()
    @checked
    def start(self, statistics: LabelStatistics) -> None:
        """Takes the units of the labels, so that a tower that puts out 0 predicts their distribution.

        Raises:
            InputError: if a deviation is not above 0, a number is not finite, or the head is on the meta device, where
                nothing is kept.
        """
        if self.shift.is_meta:
            raise InputError("a head must not start on the meta device, where nothing is kept")
        if not (all(map(math.isfinite, statistics[:6])) and statistics.deviation > 0 and statistics.log_deviation > 0):
            raise InputError(f"statistics of {self.task!r} (={tuple(statistics)}) must be finite, deviations above 0")
        if not 0 <= statistics.num_positive <= statistics.num_rows:
            raise InputError(
                f"statistics of {self.task!r} (={tuple(statistics)}) must not count more positives than rows"
            )
        shift, scale = [statistics.mean], [statistics.deviation]
        if isinstance(self.kind, Classes):
            shift, scale = self._of_classes(statistics), [1.0] * self.kind.num_outputs
        if isinstance(self.kind, Quantile):
            normal = NormalDist(statistics.mean, statistics.deviation)
            shift, scale = [normal.inv_cdf(level) for level in self.kind.levels], scale * self.kind.num_outputs
        elif isinstance(self.kind, ZILN):
            odds = (statistics.num_positive + 1) / (statistics.num_rows - statistics.num_positive + 1)
            sigma = statistics.log_deviation
            shift = [math.log(odds), statistics.log_mean, sigma + math.log(-math.expm1(-sigma))]
            scale = [1.0, sigma, 1.0]
        self.shift.copy_(torch.tensor(shift))
        self.log_scale.copy_(torch.tensor(scale, dtype=torch.float64).log())

    def _of_classes(self, statistics: LabelStatistics) -> list[float]:
        """The outputs that predict the shares of the classes, each counted once more than it is there."""
        assert isinstance(self.kind, Classes)
        counts = [number + 1 for number in statistics.of_classes]
        if len(counts) != self.kind.num_classes:
            raise InputError(f"statistics of {self.task!r} (={tuple(statistics)}) must count its classes")
        if not isinstance(self.kind, Ordinal):
            return [math.log(count / sum(counts)) for count in counts]
        return [math.log(sum(counts[k + 1 :]) / sum(counts[: k + 1])) for k in range(self.kind.num_outputs)]


@checked
def give_heads(over_arch: nn.Module, tasks: TaskForest) -> None:
    """Gives the `Tower` of each task that is a value a `ValueHead`; the last step of a model's constructor.

    So a value shares what any other task of the model does, up to its tower.

    Raises:
        InputError: if a task is a value, and the over arch does not have one tower a task.
    """
    if not tasks.values:
        return
    towers = [module for module in over_arch.modules() if isinstance(module, Tower)]
    if len(towers) != len(tasks):
        rule = f"must have one `Tower` a task ({len(tasks)}), not {len(towers)}, to learn the value"
        raise InputError(f"{type(over_arch).__name__} {rule} {tasks.values[0].name!r}")
    for tower, task in zip(towers, tasks.tasks, strict=True):
        if not task.is_binary:
            last = tower.output
            assert isinstance(last, nn.Linear)
            with torch.device(last.weight.device):
                tower.output = ValueHead(task.kind, task.name, last.in_features)


@checked
def start_values(model: nn.Module, statistics: Mapping[str, LabelStatistics]) -> None:
    """Calls `ValueHead.start` for the head of each task, by name; for a model before it is distributed.

    Raises:
        InputError: if a head's task has no statistics; see also `ValueHead.start`.
    """
    for module in model.modules():
        if isinstance(module, ValueHead):
            if module.task not in statistics:
                raise InputError(f"`statistics` (of {list(statistics)}) must have those of {module.task!r}")
            module.start(statistics[module.task])


def predicted(kind: Kind, outputs: Tensor) -> Tensor:
    """Returns what a task predicts, given its outputs ``[B, num_outputs]``: one column for each of `Kind.columns`.

    Example::

        >>> predicted(ZILN(), torch.tensor([[0.0, 1.0, 2.0]]))  # exp(1 + 2) / 2
        tensor([[10.0428]])
    """
    if isinstance(kind, ZILN):
        logit, mu, sigma = outputs.split(1, dim=1)
        return logit.sigmoid() * torch.exp(mu + sigma**2 / 2)
    if isinstance(kind, Classes):
        return log_probabilities(kind, outputs).exp()
    return outputs


def log_probabilities(kind: Classes, outputs: Tensor) -> Tensor:
    """Returns the logarithms of the classes' probabilities, ``[B, C]``.

    With ``o_k`` the logit of P(class > k) of `Ordinal`, that of a class between others is ``log sigmoid(o_{k-1}) +
    log sigmoid(-o_k) + log(1 - exp(o_k - o_{k-1}))``, the logarithm of ``sigmoid(o_{k-1}) - sigmoid(o_k)``.

    Example::

        >>> from torchrec_mtl.kinds import Ordinal
        >>> log_probabilities(Ordinal(3), torch.tensor([[0.0, -1e9]])).exp()
        tensor([[0.5000, 0.5000, 0.0000]])
    """
    if not isinstance(kind, Ordinal):
        return F.log_softmax(outputs, dim=1)
    above, below = F.logsigmoid(outputs), F.logsigmoid(-outputs)
    gaps = (outputs[:, 1:] - outputs[:, :-1]).clamp(max=-SMALLEST_GAP)
    between = above[:, :-1] + below[:, 1:] + torch.log(-torch.expm1(gaps))
    return torch.cat([below[:, :1], between, above[:, -1:]], dim=1)
