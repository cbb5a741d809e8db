import pytest

from torchrec_mtl.ops import library


@pytest.fixture(scope="session")
def kernel():
    """The kernels, which must be built where there is a compiler."""
    if not library.load():
        pytest.skip("the C++ kernels are not built")
