import pytest
import torch

from benchmarks.zero_collision import NAMES, batches, check, distributed, step
from torchrec_mtl.training.config import ZchConfig
from torchrec_mtl.training.process_group import process_group


def test_nothing_is_timed_where_ids_have_no_rows() -> None:
    (first, *_) = batches(size=8, num_ids=50)
    with process_group(torch.device("cpu")):
        own = distributed(ZchConfig(fields=NAMES, num_rows=6400, interval=2), 6400)
        step(*own, first)
        with pytest.raises(SystemExit, match="an id of t_f0 has no row, so nothing is timed"):
            check(own[0], first)
        step(*own, first)
        check(own[0], first)
