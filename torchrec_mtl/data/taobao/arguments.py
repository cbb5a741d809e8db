"""The arguments of a preparation."""

from dataclasses import dataclass

from torchrec_mtl.data.raw.arguments import RawArguments, check_at_least
from torchrec_mtl.data.taobao.behaviors import Windows
from torchrec_mtl.data.taobao.features import HISTORY_FIELDS, SINGLE_FIELDS


@dataclass(frozen=True, kw_only=True)
class Arguments(RawArguments):
    """Those of `prepare_taobao`, checked."""

    history_length: int
    history_days: int
    purchase_days: int
    min_count: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, history_length=0, history_days=1, purchase_days=0, min_count=1)

    @property
    def windows(self) -> Windows:
        return Windows(self.history_length, self.history_days, self.purchase_days)

    @property
    def labels(self) -> tuple[str, ...]:
        return ("click", "purchase") if self.purchase_days else ("click",)

    @property
    def fields(self) -> tuple[str, ...]:
        return (*SINGLE_FIELDS, *(HISTORY_FIELDS if self.history_length else ()))
