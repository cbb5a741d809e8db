"""The public callables: what each package names in ``__all__``, the settings of training, and the jobs."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from typing import Any

import torchrec_mtl
from torchrec_mtl import components
from torchrec_mtl.__main__ import JOBS
from torchrec_mtl.training import config

ROOT = "torchrec_mtl."


def _packages() -> list[Any]:
    names = [
        module.name for module in pkgutil.walk_packages(torchrec_mtl.__path__, ROOT) if "triton" not in module.name
    ]
    return [torchrec_mtl, *(importlib.import_module(name) for name in names)]


def public_callables() -> dict[str, Callable[..., Any]]:
    """Every public class and function by its name below ``torchrec_mtl``, each once."""
    found: dict[str, Callable[..., Any]] = {}
    for package in _packages():
        for name in getattr(package, "__all__", ()):
            value = getattr(package, name)
            if (inspect.isclass(value) or inspect.isroutine(value)) and value not in found.values():
                found[f"{package.__name__}.{name}".removeprefix(ROOT)] = value
    for module in (config, importlib.import_module("torchrec_mtl.systems")):
        for name, value in vars(module).items():
            if inspect.isclass(value) and value.__module__ == module.__name__:
                found[f"{module.__name__}.{name}".removeprefix(ROOT)] = value
    for name, value in vars(components).items():
        if inspect.isfunction(value) and value.__module__ == components.__name__ and not name.startswith("_"):
            found[f"components.{name}"] = value
    for job, (module, _) in JOBS.items():
        found[f"jobs.{job}"] = importlib.import_module(module).main
    return found
