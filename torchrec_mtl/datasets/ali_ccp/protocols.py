"""The two protocols, and the arguments of a preparation."""

from dataclasses import dataclass

from torchrec_mtl.data.raw.preparation import RawArguments
from torchrec_mtl.datasets.ali_ccp import published
from torchrec_mtl.datasets.ali_ccp.columns import ListColumns, SingleColumns
from torchrec_mtl.datasets.ali_ccp.layout import FIELDS
from torchrec_mtl.errors import InputError

BROKEN_FUNNEL = ("drop", "keep", "refuse")


@dataclass(frozen=True)
class AliCcpProtocol:
    """Which features are kept in which form, how often an id must occur, and what becomes of broken rows."""

    columns: SingleColumns | ListColumns
    min_count: int
    broken_funnel: str


PROTOCOLS = {
    "aitm": AliCcpProtocol(SingleColumns(tuple(published.NUM_EMBEDDINGS)), min_count=12, broken_funnel="drop"),
    "full": AliCcpProtocol(ListColumns(FIELDS), min_count=1, broken_funnel="keep"),
}


@dataclass(frozen=True, kw_only=True)
class AliCcpArguments(RawArguments):
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
    def protocol_settings(self) -> AliCcpProtocol:
        return PROTOCOLS[self.protocol]
