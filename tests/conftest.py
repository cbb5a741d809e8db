import os
import shutil
import zlib

import pytest
import torch
from hypothesis import settings

from tests import VERIFY

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before the kernels are imported: Triton then runs them on the CPU


def pytest_addoption(parser):
    parser.addoption("--every", type=int, default=1, help="run one test of so many, spread over all")
    parser.addoption("--part", type=int, default=0, help="with --every: which of those parts of all tests")


def pytest_collection_modifyitems(config, items):
    every, part = config.getoption("every"), config.getoption("part")
    taken = [zlib.crc32(item.nodeid.encode()) % every == part % every for item in items]
    left_out = [item for item, runs in zip(items, taken, strict=True) if not runs]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item, runs in zip(items, taken, strict=True) if runs]


def pytest_runtest_setup(item):
    if item.get_closest_marker("verify") and not VERIFY:
        pytest.skip("`make verify` runs it")


settings.register_profile("default", deadline=None)  # the first call of a torch function takes seconds
settings.load_profile("default")


@pytest.fixture(scope="module")
def server():
    """An empty S3 server, and the environment that finds it."""
    from tests.s3 import ENVIRONMENT, S3Server

    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        started = S3Server()
        yield started
        started.stop()


@pytest.fixture(scope="session")
def kernel():
    """The kernels, which must be built where there is a compiler."""
    from torchrec_mtl.ops import library

    if not library.load():
        if shutil.which(os.environ.get("CXX") or "c++"):
            pytest.fail("build the kernels first: python -m torchrec_mtl.ops.build")
        pytest.skip("the C++ kernels are not built, and there is no compiler")
