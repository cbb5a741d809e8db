import os

VERIFY = bool(os.environ.get("TORCHREC_MTL_VERIFY"))  # `make verify` sets it: everything, however long it takes
