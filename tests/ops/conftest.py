import os
import shutil
import subprocess
import sys

import pytest

from torchrec_mtl.ops.small_attention import library

BUILD = [sys.executable, "-m", "torchrec_mtl.ops.small_attention.build"]


@pytest.fixture(scope="session")
def kernel_cache(tmp_path_factory):
    """The folder of a cache in which the kernels are, built as their users build them."""
    compiler = os.environ.get("CXX") or "c++"
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no compiler `{compiler}`")
    folder = str(tmp_path_factory.mktemp("cache"))
    environment = {**os.environ, "XDG_CACHE_HOME": folder}
    subprocess.run(BUILD, env=environment, check=True, capture_output=True, text=True)
    return folder


@pytest.fixture(scope="module")
def kernel(kernel_cache):
    """The kernels, for the tests of a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", kernel_cache)
        library.load.cache_clear()
        assert library.load() is not None
        yield
    library.load.cache_clear()
