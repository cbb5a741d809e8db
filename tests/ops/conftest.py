import os
import shutil
import subprocess
import sys

import pytest

from torchrec_mtl.ops import library


@pytest.fixture(scope="session")
def kernel_cache(tmp_path_factory):
    """A cache folder that holds the kernels, built as users build them."""
    compiler = os.environ.get("CXX") or "c++"
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no compiler `{compiler}`")
    folder = str(tmp_path_factory.mktemp("cache"))
    environment = {**os.environ, "XDG_CACHE_HOME": folder}
    command = [sys.executable, "-m", "torchrec_mtl.ops.build"]
    subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return folder


@pytest.fixture(scope="module")
def kernel(kernel_cache):
    """Loads the kernels for the tests of a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", kernel_cache)
        library.load.cache_clear()
        assert library.load() is not None
        yield
    library.load.cache_clear()
