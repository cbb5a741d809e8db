"""A metric in parts: each rank measures some of the rows, and the parts of all ranks give the value."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from torchrec_mtl.argument_types import check_fields
from torchrec_mtl.errors import check_choice
from torchrec_mtl.metrics.ranges import averaged, edges, merged, ordered_keys
from torchrec_mtl.metrics.ranks import Ranks
from torchrec_mtl.modules.id_hash import ANY_ID, hash_ids


@dataclass(frozen=True)
class Parts:
    """How a metric is measured over several ranks of which none holds the rows of all.

    Args:
        of_rows: ``(logits, labels, weights) -> [S]``, with ``groups`` before ``weights`` for a metric of groups; as the
            function of a :class:`Metric`, but the rows are those of one rank, and there may be none. It must not raise,
            as the other ranks would wait.
        value: ``[R, S] -> float``, the metric from the parts of ``R`` ranks, in float64.
        by: which rows a rank measures: ``"any"``, for sums; ``"score"``, those of one range of scores, lower ranks the
            lower scores, where rows of equal score and label are one row of the sum of their weights; ``"value"``, the
            same for labels of any size, where rows of equal score are one row of their mean label; ``"group"``, all
            rows of its groups.

    Raises:
        InputError: if ``by`` is none of the values above.

    Example::

        >>> def right(logits, labels, weights):
        ...     return torch.stack([(weights * ((logits > 0) == labels)).sum(), weights.sum()])
        >>> accuracy = Parts(right, lambda parts: float(parts[:, 0].sum() / parts[:, 1].sum()))
        >>> accuracy(torch.tensor([1.0, -1.0]), torch.tensor([1.0, 1.0]), torch.tensor([3.0, 1.0]))
        0.75
    """

    of_rows: Callable[..., Tensor]
    value: Callable[[Tensor], float]
    by: Literal["any", "score", "value", "group"] = "any"

    def __post_init__(self) -> None:
        check_fields(self)
        check_choice("by", self.by, ("any", "score", "value", "group"))

    def __call__(self, *columns: Tensor | None) -> float:
        """Returns the metric of these rows alone."""
        return self.value(self.of_rows(*columns).double()[None])

    def over(self, ranks: Ranks, *columns: Tensor) -> float:
        """Returns the metric of the rows of all ranks; all of them call it."""
        if self.by in ("score", "value"):
            columns = tuple(merged(*columns) if self.by == "score" else averaged(*columns))
            keys = ordered_keys(columns[0])
            found = edges(keys, torch.ones(len(keys)), ranks.size, ranks.sum)
            columns = tuple(ranks.exchange(columns, torch.bucketize(keys, found)))
        elif self.by == "group":
            columns = tuple(ranks.exchange(columns, hash_ids(columns[2] & ANY_ID) % ranks.size))
        return self.value(ranks.stack(self.of_rows(*columns).double()))
