"""The arguments of a preparation."""

import json
from dataclasses import asdict, dataclass

from torchrec_mtl.data.raw.bad_rows import POLICIES
from torchrec_mtl.data.taobao.behaviors import Windows
from torchrec_mtl.data.taobao.features import HISTORY_FIELDS, SINGLE_FIELDS
from torchrec_mtl.errors import InputError


@dataclass(frozen=True)
class Arguments:
    """Those of `prepare_taobao`, checked."""

    raw: str
    history_length: int
    history_days: int
    purchase_days: int
    min_count: int
    bad_rows: str
    bad_rows_limit: int
    sample: float
    seed: int

    def __post_init__(self) -> None:
        least = {
            "history_length": 0,
            "history_days": 1,
            "purchase_days": 0,
            "min_count": 1,
            "bad_rows_limit": 1,
            "seed": 0,
        }
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise InputError(f"`{name}` (={getattr(self, name)}) must be at least {smallest}")
        if self.bad_rows not in POLICIES:
            raise InputError(f"`bad_rows` (={self.bad_rows!r}) must be one of {list(POLICIES)}")
        if not 0 < self.sample <= 1:
            raise InputError(f"`sample` (={self.sample}) must be above 0 and at most 1")

    @property
    def windows(self) -> Windows:
        return Windows(self.history_length, self.history_days, self.purchase_days)

    @property
    def labels(self) -> tuple[str, ...]:
        return ("click", "purchase") if self.purchase_days else ("click",)

    @property
    def fields(self) -> tuple[str, ...]:
        return (*SINGLE_FIELDS, *(HISTORY_FIELDS if self.history_length else ()))

    def __str__(self) -> str:
        return json.dumps(asdict(self))
