"""One user and ``N`` candidates: the user's fields are looked up once, and multiplied once."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from torchrec_mtl.errors import InputError
from torchrec_mtl.inference.package.graph import InferenceGraph, example_ids
from torchrec_mtl.inference.package.tables import Ids, Lookup, TableRows

Columns = slice | list[int]


class CandidatesGraph(nn.Module):
    """A graph that scores the candidates of one user.

    Args:
        graph: graph of rows.
        user_keys: keys of the user's ids; the other ids, and the dense columns, are the candidates'.

    Attributes:
        user_features: places of the user's keys among all.
        features: places of the candidates' keys.

    Raises:
        InputError: if ``user_keys`` names no key of the graph, or all of them, or the model has histories, which each
            candidate attends anew.
    """

    def __init__(self, graph: InferenceGraph, user_keys: Sequence[str]) -> None:
        super().__init__()
        if not set(user_keys) < set(graph.keys):
            rule = f"must be some of the keys, and not all: {graph.keys}"
            raise InputError(f"`user_keys` (={list(user_keys)}) {rule}")
        if graph.has_histories:
            raise InputError(f"`user_keys` (={list(user_keys)}) must be empty for a model with histories")
        self.of_rows = graph  # a traced module has a `graph` of its own
        self.user_features = [f for f, key in enumerate(graph.keys) if key in user_keys]
        self.features = [f for f, key in enumerate(graph.keys) if key not in user_keys]

    def forward(
        self,
        user_values: Tensor,
        user_lengths: Tensor,
        user_weights: Tensor | None,
        dense_features: Tensor,
        values: Tensor,
        lengths: Tensor,
        weights: Tensor | None,
        rows: list[Tensor],
    ) -> Tensor:
        """Returns p(task) ``[N, T]``.

        Args:
            user_values: the user's ids, of one key after the other.
            user_lengths: number of ids of each of the user's keys, ``[F_user, 1]``.
            user_weights: weights of the user's ids; None if the tables are not weighted.
            dense_features: ``[N, num_dense]``.
            values: ids of the candidates, of the first of their keys for all candidates, then of the next.
            lengths: number of ids ``[F - F_user, N]``.
            weights: weights of the ids; None if the tables are not weighted.
            rows: bytes of the tables.
        """
        graph = self.of_rows
        user = graph.known(user_values, user_lengths, user_weights, self.user_features)
        candidates = graph.known(values, lengths, weights, self.features)
        products = _Products()
        lookup = _OneUser(user, self.user_features, candidates, self.features, rows, products)
        with products:
            logits = graph.model(dense_features, lookup)
        scores: Tensor = graph.output(logits)
        return scores


class _Products(TorchFunctionMode):
    """Splits products of the fields with a matrix: the user's columns are multiplied once, and not for each candidate.

    It acts where a layer's input is the concatenated fields themselves, as in the first layers of MLPs, experts and
    gates. Attention has fields in rows, so there is nothing to split.
    """

    def __init__(self) -> None:
        super().__init__()
        self._fields: list[tuple[Tensor, tuple[Tensor, Columns], tuple[Tensor, Columns]]] = []

    def add(self, whole: Tensor, user: tuple[Tensor, Columns], candidates: tuple[Tensor, Columns]) -> None:
        """Names the parts of the fields ``whole [N, ...]``: the user's ``[1, ...]`` and the candidates'."""
        self._fields.append((whole, user, candidates))

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if function is F.linear and not kwargs:
            x, weight, *bias = args
            for whole, (user, of_user), (candidates, of_candidates) in self._fields:
                if x is whole:
                    once = F.linear(user, weight[:, of_user], *bias)
                    return F.linear(candidates, weight[:, of_candidates]) + once
        return function(*args, **(kwargs or {}))


class _OneUser(Lookup):
    def __init__(
        self,
        user: Ids,
        user_features: list[int],
        candidates: Ids,
        features: list[int],
        rows: list[Tensor],
        products: _Products,
    ) -> None:
        super().__init__(candidates, rows)
        self.user, self.user_features, self.features, self.products = user, user_features, features, products

    def __call__(self, tables: TableRows, place: int, others: list[Tensor]) -> Tensor:
        of_user = tables(self.rows[place], self.user, self.user_features)
        of_candidates = tables(self.rows[place], self.ids, self.features)
        num_candidates = self.ids.lengths.shape[1]
        fields = dict(zip(self.features, of_candidates, strict=True))
        for feature, field in zip(self.user_features, of_user, strict=True):
            fields[feature] = field.expand(num_candidates, -1)
        parts, columns = [fields[feature] for feature in sorted(fields)], _columns(tables.dims)
        user_columns = [c for feature in self.user_features for c in columns[feature]]
        columns_of_candidates = [c for feature in self.features for c in columns[feature]]
        parts += others
        of_candidates += others
        columns_of_candidates += range(sum(tables.dims), sum(each.shape[1] for each in parts))
        whole = torch.cat(parts, dim=1)
        user = torch.cat(of_user, dim=1), _as_slice(user_columns)
        self.products.add(whole, user, (torch.cat(of_candidates, dim=1), _as_slice(columns_of_candidates)))
        return whole


def _columns(dims: Sequence[int]) -> list[range]:
    return [range(*ends) for ends in itertools.pairwise(itertools.accumulate(dims, initial=0))]


def _as_slice(columns: list[int]) -> Columns:
    """Columns that lie side by side are a slice: a view of a matrix, instead of a copy in every call."""
    first, last = columns[0], columns[-1] + 1
    return slice(first, last) if columns == list(range(first, last)) else columns


def example(graph: CandidatesGraph, num_candidates: int) -> tuple[Any, ...]:
    """Returns arguments of a graph of candidates."""
    of_rows, is_weighted = graph.of_rows, graph.of_rows.is_weighted
    user = example_ids(len(graph.user_features), 1, is_weighted)
    candidates = example_ids(len(graph.features), num_candidates, is_weighted)
    return *user, torch.zeros(num_candidates, of_rows.num_dense), *candidates, of_rows.rows
