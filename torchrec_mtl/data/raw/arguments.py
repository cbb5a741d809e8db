"""The arguments that all preparations of raw files have."""

import json
from dataclasses import asdict, dataclass

from torchrec_mtl.data.raw.bad_rows import check_policy
from torchrec_mtl.errors import InputError


@dataclass(frozen=True, kw_only=True)
class RawArguments:
    """Checked; as a string they are JSON, by which a prepared data set tells what it was prepared with.

    Args:
        raw: the raw files' folder.
        bad_rows, bad_rows_limit: see `BadRows`.
        sample: share of the rows or users to keep, above 0 and at most 1.
        seed: of what is drawn.

    Raises:
        InputError: if one is out of its range.
    """

    raw: str
    bad_rows: str
    bad_rows_limit: int
    sample: float
    seed: int

    def __post_init__(self) -> None:
        check_policy(self.bad_rows, self.bad_rows_limit)
        if not 0 < self.sample <= 1:
            raise InputError(f"`sample` (={self.sample}) must be above 0 and at most 1")
        check_at_least(self, seed=0)

    def __str__(self) -> str:
        return json.dumps(asdict(self))


def check_at_least(arguments: object, **least: float) -> None:
    """InputError unless each attribute is at least the number given for it."""
    for name, smallest in least.items():
        if getattr(arguments, name) < smallest:
            raise InputError(f"`{name}` (={getattr(arguments, name)}) must be at least {smallest}")


def check_share(arguments: object, *names: str) -> None:
    """InputError unless each attribute is at least 0 and at most 1."""
    for name in names:
        if not 0 <= getattr(arguments, name) <= 1:
            raise InputError(f"`{name}` (={getattr(arguments, name)}) must be at least 0 and at most 1")
