"""Ali-CCP, Alibaba's clicks and conversions: raw files to a prepared data set, and a generator of raw files."""

from torchrec_mtl.data.ali_ccp.generate import AliCcpGenerator, oracle_auc
from torchrec_mtl.data.ali_ccp.prepare import prepare_ali_ccp

__all__ = ["AliCcpGenerator", "oracle_auc", "prepare_ali_ccp"]
