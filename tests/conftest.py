import os

import torch
from hypothesis import settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before the kernels are imported: Triton then runs them on the CPU

settings.register_profile("default", deadline=None)  # the first call of a torch function takes seconds
settings.load_profile("default")
