"""Other libraries, each in a virtual environment of its own."""

import os
import subprocess
import venv
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

TORCH_CPU_INDEX = os.environ.get("TORCH_CPU_INDEX", "https://download.pytorch.org/whl/cpu")
REQUIREMENTS = {
    "torch_rechub": ["torch-rechub==0.9.0"],
    "deepctr_torch": ["deepctr-torch==0.3.0", "requests"],  # which it imports and does not ask for
    "fuxictr": ["fuxictr==2.3.10"],
    "libmtl": ["LibMTL==1.1.5", "scipy"],  # which it imports and does not ask for
    "lightgbm": ["lightgbm==4.7.0"],
}
WITHOUT_TORCH = ("lightgbm",)


def python_with(peer: str, further: Sequence[str] = ()) -> Path:
    """The interpreter of an environment with ``peer``, ``further`` packages, and where it needs torch this process's.

    It is built once for the user.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "torchrec_mtl" / "peers"
    torch = [] if peer in WITHOUT_TORCH else [f"torch=={metadata.version('torch').partition('+')[0]}"]
    folder = cache / "-".join([*REQUIREMENTS[peer], *further, *torch]).replace("==", "-")
    python, installed = folder / "bin" / "python", folder / "installed"
    if not installed.exists():  # written last: an interrupted install starts again
        venv.create(folder, clear=True, with_pip=True)
        install = [python, "-m", "pip", "install", "-q", "--retries", "2"]
        if torch:  # it alone is looked for on PyTorch's index, where the CPU build is
            subprocess.run([*install, "--no-deps", "--extra-index-url", TORCH_CPU_INDEX, *torch], check=True)
        subprocess.run([*install, *torch, *REQUIREMENTS[peer], *further], check=True)
        installed.touch()
    return python
