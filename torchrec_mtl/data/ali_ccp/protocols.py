"""The two protocols, and the arguments of a preparation."""

from dataclasses import dataclass

from torchrec_mtl.data.ali_ccp import golden
from torchrec_mtl.data.ali_ccp.columns import ListColumns, SingleColumns
from torchrec_mtl.data.ali_ccp.layout import FIELDS
from torchrec_mtl.data.raw.bad_rows import POLICIES
from torchrec_mtl.errors import InputError

BROKEN_FUNNEL = ("drop", "keep", "refuse")


@dataclass(frozen=True)
class Protocol:
    """Which features are kept in which form, how often an id must occur, and what becomes of broken rows."""

    columns: SingleColumns | ListColumns
    min_count: int
    broken_funnel: str


PROTOCOLS = {
    "aitm": Protocol(SingleColumns(tuple(golden.NUM_EMBEDDINGS)), min_count=12, broken_funnel="drop"),
    "full": Protocol(ListColumns(FIELDS), min_count=1, broken_funnel="keep"),
}


@dataclass(frozen=True)
class Arguments:
    """Those of `prepare_ali_ccp`, checked."""

    raw: str
    protocol: str
    bad_rows: str
    bad_rows_limit: int
    broken_funnel: str
    sample: float
    seed: int

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise InputError(f"`protocol` (={self.protocol!r}) must be one of {list(PROTOCOLS)}")
        object.__setattr__(self, "broken_funnel", self.broken_funnel or self.protocol_settings.broken_funnel)
        for name, known in (("bad_rows", POLICIES), ("broken_funnel", BROKEN_FUNNEL)):
            if getattr(self, name) not in known:
                raise InputError(f"`{name}` (={getattr(self, name)!r}) must be one of {list(known)}")
        if self.bad_rows_limit < 1:
            raise InputError(f"`bad_rows_limit` (={self.bad_rows_limit}) must be at least 1")
        if not 0 < self.sample <= 1:
            raise InputError(f"`sample` (={self.sample}) must be above 0 and at most 1")
        if self.seed < 0:
            raise InputError(f"`seed` (={self.seed}) must be at least 0")

    @property
    def protocol_settings(self) -> Protocol:
        return PROTOCOLS[self.protocol]
