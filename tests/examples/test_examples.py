"""The examples run, and what they train gets better."""

import importlib
import re
from pathlib import Path

import pytest
import torch
from torchrec import EmbeddingBagCollection

from tests import processes

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "arguments", "ranks"),
    [
        ("train_dlrm.py", ("--model", "dlrm", "--steps", "41"), 2),
        ("train_dlrm.py", ("--model", "tafe", "--steps", "41"), 2),
        ("over_arch_in_own_model.py", (), 0),
        ("own_over_arch.py", (), 0),
    ],
)
def test_example_trains(program, arguments, ranks):
    told = processes.run_program(EXAMPLES / program, *arguments, ranks=ranks)
    losses = [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", told)]
    assert losses[-1] < losses[0]


def test_every_example_is_run_here():
    programs = {path.name for path in EXAMPLES.glob("*.py")} - {"random_funnel.py", "shop_log.py"}
    assert programs == {"train_dlrm.py", "over_arch_in_own_model.py", "own_over_arch.py"}


def test_an_untrained_models_logits_may_be_of_any_probability(monkeypatch):
    """They are logits of probabilities that are multiplied: the first above .5 in some rows, below in others."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    torch.manual_seed(0)
    example, data = importlib.import_module("own_over_arch"), importlib.import_module("random_funnel")
    model = example.YourModel(EmbeddingBagCollection(tables=data.tables(embedding_dim=8)))
    (rows,) = data.batches(1, batch_size=512)
    p = model(rows.dense_features, rows.sparse_features).sigmoid()
    assert p[:, 0].max() > 0.5 > p[:, 0].min()
    assert (p.diff(dim=1) <= 0).all()
