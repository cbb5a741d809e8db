"""The settings of a run's histories: plain frozen values, checked where they are made."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torchrec_mtl.argument_types import check_fields
from torchrec_mtl.errors import InputError, check_at_least


@dataclass(frozen=True)
class HistoryConfig:
    """Which multi-valued fields are histories, whose order matters, and how they are read.

    Args:
        candidates: the field that attends each history, by the history's name: ``{"recent_items": "item"}``. Both
            look up one table, see `Field.shares`. Any other multi-valued field is pooled.
        max_length: number of ids of a history that are read, the newest.
        transformer_layers: number of transformer layers that a history goes through before the candidate attends it;
            with 0 the order does not matter.
        num_heads: number of heads of these layers; must divide the dimension of the table.
        layer_size: width of the hidden layer of the candidate's attention.

    Raises:
        InputError: if a number is out of its range, or a candidate is a history.

    Example::

        >>> HistoryConfig({"recent_items": "item", "item": "brand"})
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: `candidates` (='item' of 'recent_items') must not be a history
    """

    candidates: Mapping[str, str] = field(default_factory=dict)
    max_length: int = 50
    transformer_layers: int = 0
    num_heads: int = 1
    layer_size: int = 36

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(1, max_length=self.max_length, num_heads=self.num_heads, layer_size=self.layer_size)
        check_at_least(0, transformer_layers=self.transformer_layers)
        for history, candidate in self.candidates.items():
            if candidate in self.candidates:
                raise InputError(f"`candidates` (={candidate!r} of {history!r}) must not be a history")
