"""TaoBao display ads: raw files to a prepared data set, and a generator of such files."""

from torchrec_mtl.data.taobao.generate import TaobaoGenerator, oracle_auc
from torchrec_mtl.data.taobao.prepare import prepare_taobao

__all__ = ["TaobaoGenerator", "oracle_auc", "prepare_taobao"]
