"""Imports every module of the installed package and every public name: ``python -I tests/every_name.py``."""

import importlib
import pkgutil

import torchrec_mtl

SPARK = "torchrec_mtl.data.table.spark"  # needs the extra `spark`

names = 0
for module in pkgutil.walk_packages(torchrec_mtl.__path__, "torchrec_mtl."):
    if module.name.startswith(SPARK) or module.name == "torchrec_mtl.__main__":
        continue
    found = importlib.import_module(module.name)
    names += len([getattr(found, name) for name in getattr(found, "__all__", ())])
print(f"{names} names of {torchrec_mtl.__file__}")
