"""Data sets, one folder each: its preparation, and the model settings found on it."""

from torchrec_mtl.datasets.ali_ccp.prepare import prepare_ali_ccp
from torchrec_mtl.datasets.complete_journey.prepare import prepare_complete_journey
from torchrec_mtl.datasets.synthetic.funnel import SyntheticFunnel
from torchrec_mtl.datasets.synthetic.prepare import oracle_auc, prepare_synthetic
from torchrec_mtl.datasets.taobao.prepare import prepare_taobao

__all__ = [
    "SyntheticFunnel",
    "oracle_auc",
    "prepare_ali_ccp",
    "prepare_complete_journey",
    "prepare_synthetic",
    "prepare_taobao",
]
