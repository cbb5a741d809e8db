"""The two protocols of preparing Ali-CCP, and the arguments of a preparation.

``aitm``: what published figures use; it follows the preparation of the AITM authors (Xi et al., KDD 2021). Each of 18
fields has one id per row. Rows with a purchase and no click are dropped. If a row and its common features both have a
field, the common features win. An id is kept if it occurs in at least 12 rows of the raw train file; missing, rare and
unseen ids share code 0.

``full``: all 23 fields with all their ids, and the values as weights. An id is kept if it occurs in the raw train file.
Rows with a purchase and no click are kept, with weight 0 in column ``known``.
"""

from dataclasses import dataclass
from functools import partial

from torchrec_mtl.data.raw.preparation import RawArguments
from torchrec_mtl.data.table.declaration import ByColumn, Table, weight_column
from torchrec_mtl.data.table.ids import Vocabulary
from torchrec_mtl.datasets.ali_ccp import published
from torchrec_mtl.datasets.ali_ccp.columns import ListColumns, SingleColumns
from torchrec_mtl.datasets.ali_ccp.layout import FIELDS, LABELS
from torchrec_mtl.errors import check_choice
from torchrec_mtl.tasks import TaskChain

BROKEN_FUNNEL = ("drop", "keep", "refuse")
KNOWN = "known"  # the weight column: 0 for a row with a purchase and no click


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


def declare(arguments: AliCcpArguments) -> Table:
    """Declares the rows of a protocol: features of an impression joined with its common features."""
    protocol = arguments.protocol_settings
    ids = partial(Vocabulary, min_count=protocol.min_count, order="value", unknown="missing")
    weighted, known = protocol.columns.multi_valued, arguments.broken_funnel == "keep"
    return Table(
        f"ali_ccp-{arguments.protocol}",
        arguments.raw,
        TaskChain(LABELS, weight_columns=[KNOWN] * len(LABELS) if known else None),
        [ids(field, weights=weight_column(field) if weighted else None) for field in protocol.columns.fields],
        split=ByColumn("split"),
        group="user",
    )
