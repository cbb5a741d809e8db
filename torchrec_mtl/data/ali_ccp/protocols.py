"""The two protocols, and the arguments of a preparation."""

from dataclasses import dataclass

from torchrec_mtl.data.ali_ccp import golden
from torchrec_mtl.data.ali_ccp.columns import ListColumns, SingleColumns
from torchrec_mtl.data.ali_ccp.layout import FIELDS
from torchrec_mtl.data.raw.arguments import RawArguments
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


@dataclass(frozen=True, kw_only=True)
class Arguments(RawArguments):
    """Those of `prepare_ali_ccp`, checked."""

    protocol: str
    broken_funnel: str

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise InputError(f"`protocol` (={self.protocol!r}) must be one of {list(PROTOCOLS)}")
        object.__setattr__(self, "broken_funnel", self.broken_funnel or self.protocol_settings.broken_funnel)
        if self.broken_funnel not in BROKEN_FUNNEL:
            raise InputError(f"`broken_funnel` (={self.broken_funnel!r}) must be one of {list(BROKEN_FUNNEL)}")
        super().__post_init__()

    @property
    def protocol_settings(self) -> Protocol:
        return PROTOCOLS[self.protocol]
