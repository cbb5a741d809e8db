import os

import pytest
import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before the kernels are imported: Triton then runs them on the CPU

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
