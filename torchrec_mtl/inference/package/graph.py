"""A trained model as one graph: plain tensors in, probabilities out."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchrec_mtl.errors import InputError
from torchrec_mtl.inference.calibration import Calibration
from torchrec_mtl.inference.package.tables import GraphFeatures, Ids, Lookup
from torchrec_mtl.inference.values import with_values
from torchrec_mtl.modules import FeatureArch
from torchrec_mtl.tasks import TaskForest


class InferenceGraph(nn.Module):
    """A model whose tables are arguments.

    Args:
        model: trained model with a `FeatureArch`, or several; a copy is taken of its dense part.
        tasks: the ``T`` tasks.
        table_type: type of the rows, see `TableRows`.
        unknown_rows: row for ids that a table does not have, by key; ids of other keys are refused.
        calibration: calibration of the probabilities, if there is one.

    Attributes:
        keys: keys of the ids, in their order.
        num_dense: number of dense columns.
        rows: bytes of the tables of each collection.
        has_histories: whether a feature is attended by another.
    """

    sizes: Tensor
    unknown_rows: Tensor

    def __init__(
        self,
        model: nn.Module,
        tasks: TaskForest,
        table_type: str = "fp32",
        unknown_rows: dict[str, int] | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__()
        archs = {name: module for name, module in model.named_modules() if isinstance(module, FeatureArch)}
        if not archs:
            raise InputError(f"`model` (={type(model).__name__}) must have a `FeatureArch` to be exported")
        features = {name: GraphFeatures(arch, table_type) for name, arch in archs.items()}
        self.model = _without(model, features)
        first = next(iter(features.values()))
        self.rows: list[Tensor] = []
        for each in features.values():
            each.place = len(self.rows)
            self.rows += each.rows
            if each.keys != first.keys:
                raise InputError(f"all features must have the keys {first.keys} in this order, not {each.keys}")
        self.keys, self.is_weighted, self.tasks = first.keys, first.tables.is_weighted, tasks
        self.num_dense = max(arch.layout.dense_in_features for arch in archs.values())
        self.has_histories = any(each.histories is not None for each in features.values())
        sizes = [min(sizes) for sizes in zip(*(each.sizes for each in features.values()), strict=True)]
        rows = [(unknown_rows or {}).get(key, -1) for key in self.keys]
        self.register_buffer("sizes", torch.tensor(sizes))
        self.register_buffer("unknown_rows", torch.tensor(rows))
        probabilities = nn.Sigmoid() if calibration is None else _Calibrated(calibration)
        self.output = _WithValues(probabilities, tasks) if tasks.values else probabilities

    def forward(
        self, dense_features: Tensor, values: Tensor, lengths: Tensor, weights: Tensor | None, rows: list[Tensor]
    ) -> Tensor:
        """Returns p(task) ``[B, T]``, and of values the columns of `torchrec_mtl.inference.values.with_values`.

        Args:
            dense_features: ``[B, num_dense]``, float32.
            values: ids ``[V]``, int64, of the first key for all rows, then of the next.
            lengths: number of ids ``[F, B]``, int64.
            weights: weights of the ids ``[V]``, float32; None if the tables are not weighted.
            rows: bytes of the tables.
        """
        lookup = Lookup(self.known(values, lengths, weights), rows)
        return self.output(self.model(dense_features, lookup))

    def known(
        self, values: Tensor, lengths: Tensor, weights: Tensor | None, features: Sequence[int] | None = None
    ) -> Ids:
        """Returns ids of ``features``, by default of all, of which those that are unknown are named or refused."""
        sizes, unknown_rows = self.sizes, self.unknown_rows
        if features is not None:
            sizes, unknown_rows = sizes[list(features)], unknown_rows[list(features)]
        offsets = torch.nn.functional.pad(lengths.flatten().cumsum(0), (1, 0))
        feature = torch.repeat_interleave(lengths.sum(1), output_size=values.shape[0])
        unknown = (values < 0) | (values >= sizes[feature])
        row = unknown_rows[feature]
        # the lookup refuses ids far beyond the tables' bytes, but reads -1 as nothing, and a little beyond a table
        refused = torch.iinfo(torch.int64).max
        return Ids(torch.where(unknown, torch.where(row >= 0, row, refused), values), offsets, lengths, weights)


class _WithValues(nn.Module):
    """The scores of tasks of which some are values."""

    def __init__(self, probabilities: nn.Module, tasks: TaskForest) -> None:
        super().__init__()
        self.probabilities, self.tasks = probabilities, tasks

    def forward(self, logits: Tensor) -> Tensor:
        probabilities = self.probabilities(logits[:, : len(self.tasks.funnel)])
        return with_values(probabilities, logits, self.tasks)


class _Calibrated(nn.Module):
    """`Calibration.apply` in a graph, in float64."""

    def __init__(self, calibration: Calibration) -> None:
        super().__init__()
        self.parents, self.method = calibration.tasks.parents, calibration.method
        for number, fitted in enumerate(calibration.maps.values()):
            for name, value in fitted.items():
                self.register_buffer(f"{name}_{number}", torch.tensor(value, dtype=torch.float64))

    def forward(self, logits: Tensor) -> Tensor:
        log_p = nn.functional.logsigmoid(logits.double())
        marginals: list[Tensor] = []
        for task, parent in enumerate(self.parents):
            if parent is None:
                odds = logits[:, task].double()
            else:
                ratio = (log_p[:, task] - log_p[:, parent]).clamp(max=-1e-12)
                odds = ratio - torch.log(-torch.expm1(ratio))
            p = self._map(task, odds)
            marginals.append(p if parent is None else p * marginals[parent])
        return torch.stack(marginals, dim=1).float()

    def _map(self, task: int, odds: Tensor) -> Tensor:
        if self.method == "platt":
            line: Tensor = getattr(self, f"slope_{task}") * odds + getattr(self, f"intercept_{task}")
            return line.sigmoid()
        x, y = getattr(self, f"x_{task}"), getattr(self, f"y_{task}")
        if len(x) == 1:
            return y.expand_as(odds)
        odds = torch.minimum(torch.maximum(odds, x[0]), x[-1])
        right = torch.searchsorted(x, odds).clamp(1, len(x) - 1)
        share = (odds - x[right - 1]) / (x[right] - x[right - 1])
        interpolated: Tensor = y[right - 1] + share * (y[right] - y[right - 1])
        return interpolated


def _without(model: nn.Module, features: dict[str, GraphFeatures]) -> nn.Module:
    """A copy of the model with other features; its tables are not copied."""
    memo = {id(model.get_submodule(name)): each for name, each in features.items()}
    copied: nn.Module = copy.deepcopy(model, memo)
    return copied.eval().requires_grad_(False)


def example(graph: InferenceGraph, num_rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None, list[Tensor]]:
    """Returns arguments of a graph: a batch of the smallest ids, two for each bag."""
    ids = example_ids(len(graph.keys), num_rows, graph.is_weighted)
    return torch.zeros(num_rows, graph.num_dense), *ids, graph.rows


def example_ids(num_keys: int, num_rows: int, is_weighted: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Returns values, lengths and weights of the smallest ids, two for each bag."""
    values = torch.zeros(2 * num_keys * num_rows, dtype=torch.int64)
    return values, torch.full((num_keys, num_rows), 2), torch.ones(len(values)) if is_weighted else None
