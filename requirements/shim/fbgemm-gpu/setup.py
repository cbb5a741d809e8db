"""A package without code that answers torchrec's requirement `fbgemm-gpu` on a CPU.

torchrec asks for `fbgemm-gpu`, without a version, also where `fbgemm-gpu-cpu` is installed. Left alone, pip
adds the newest CUDA build, which unpacks into the same folder `fbgemm_gpu` and breaks both. The version is lower than
that of any such build: pip takes this package only where it is asked for by its version.
"""

from setuptools import setup

setup(
    name="fbgemm-gpu",
    version="0+cpu.shim",
    description="Metadata only: stands for fbgemm-gpu where fbgemm-gpu-cpu is installed",
    install_requires=["fbgemm-gpu-cpu"],
    py_modules=[],
)
