import os
import shutil

import pytest

from torchrec_mtl.ops import library


@pytest.fixture(scope="session")
def kernel():
    """The kernels, which must be built where there is a compiler."""
    if not library.load():
        if shutil.which(os.environ.get("CXX") or "c++"):
            pytest.fail("build the kernels first: python -m torchrec_mtl.ops.build")
        pytest.skip("the C++ kernels are not built, and there is no compiler")
