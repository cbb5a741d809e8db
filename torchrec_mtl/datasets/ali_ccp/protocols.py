"""The two protocols of preparing Ali-CCP, and the arguments of a preparation.

``aitm``: what published figures use; it follows the preparation of the AITM authors (Xi et al., KDD 2021). Each of 18
fields has one id per row. Rows with a purchase and no click are dropped. If a row and its common features both have a
field, the common features win. An id is kept if it occurs in at least 12 rows of the raw train file; missing, rare and
unseen ids share code 0.

``full``: all 23 fields with all their ids, and the values as weights. An id is kept if it occurs in the raw train file.
Rows with a purchase and no click are kept, with weight 0 in column ``known``.
"""

from dataclasses import dataclass

from torchrec_mtl.data.raw.preparation import RawArguments
from torchrec_mtl.datasets.ali_ccp import published
from torchrec_mtl.datasets.ali_ccp.columns import ListColumns, SingleColumns
from torchrec_mtl.datasets.ali_ccp.layout import FIELDS
from torchrec_mtl.errors import check_choice

BROKEN_FUNNEL = ("drop", "keep", "refuse")


@dataclass(frozen=True)
class AliCcpProtocol:
    """The form of the features, the number of rows in which an id must occur, and what happens to broken rows."""

    columns: SingleColumns | ListColumns
    min_count: int
    broken_funnel: str


ALI_CCP_PROTOCOLS = {
    "aitm": AliCcpProtocol(SingleColumns(tuple(published.NUM_EMBEDDINGS)), min_count=12, broken_funnel="drop"),
    "full": AliCcpProtocol(ListColumns(FIELDS), min_count=1, broken_funnel="keep"),
}


@dataclass(frozen=True, kw_only=True)
class AliCcpArguments(RawArguments):
    """Arguments of `prepare_ali_ccp`, checked."""

    protocol: str
    broken_funnel: str

    def __post_init__(self) -> None:
        check_choice("protocol", self.protocol, list(ALI_CCP_PROTOCOLS))
        object.__setattr__(self, "broken_funnel", self.broken_funnel or self.protocol_settings.broken_funnel)
        check_choice("broken_funnel", self.broken_funnel, BROKEN_FUNNEL)
        super().__post_init__()

    @property
    def protocol_settings(self) -> AliCcpProtocol:
        """The entry of `ALI_CCP_PROTOCOLS` for ``protocol``."""
        return ALI_CCP_PROTOCOLS[self.protocol]
