"""The state of this process's random generators as tensors."""

import random

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

State = dict[str, dict[str, Tensor]]


def random_state() -> State:
    """The state of the generators of Python, NumPy, torch and this rank's GPU, under the number of the rank."""
    version, words, gauss = random.getstate()
    assert version == 3
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    assert name == "MT19937"
    assert isinstance(keys, np.ndarray)
    state = {
        "python": torch.tensor(words),
        "python_gauss": torch.tensor([gauss is not None, gauss or 0.0], dtype=torch.float64),
        "numpy": torch.from_numpy(keys.astype(np.int64)),
        "numpy_rest": torch.tensor([position, has_gauss, cached], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return {str(dist.get_rank()): state}


def restore_random_state(state: State) -> None:
    """Restores the generators to the state that `random_state` returned on this rank."""
    own = state[str(dist.get_rank())]
    has_gauss, gauss = own["python_gauss"].tolist()
    random.setstate((3, tuple(own["python"].tolist()), gauss if has_gauss else None))
    position, has_gauss, cached = own["numpy_rest"].tolist()
    np.random.set_state(("MT19937", own["numpy"].numpy().astype(np.uint32), int(position), int(has_gauss), cached))
    torch.set_rng_state(own["torch"])
    if "cuda" in own:
        torch.cuda.set_rng_state(own["cuda"])
