"""docs/values.md: its programs run as they stand, its tables are the code's."""

import re
from pathlib import Path

import torch
from torchrec import EmbeddingBagCollection

from tests.generators.spend import rows, write_log
from torchrec_mtl import kinds
from torchrec_mtl.data import BatchLoader, read_split
from torchrec_mtl.kinds import KINDS, Binary
from torchrec_mtl.metrics import METRICS
from torchrec_mtl.models import AITM
from torchrec_mtl.modules import FeatureArch
from torchrec_mtl.training.balancing import _OF_POSITIVE_LOSSES

PAGE = (Path(__file__).parents[2] / "docs" / "values.md").read_text(encoding="utf-8")


def test_the_programs_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_log(tmp_path / "log.parquet", 600)
    first, second = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    names = {}
    exec(first, names)
    scores = names["predictions"].to_polars()
    listed = re.search(r"The columns are (.*?)\. `spend_after_buy`", PAGE, re.S)[1]
    assert re.findall(r"`([\w.]+)`", listed) == scores.columns
    torch.testing.assert_close(scores["score"].to_torch(), (scores["buy"] * scores["spend_after_buy"]).to_torch())
    split = read_split(names["folder"], "train")
    tables = EmbeddingBagCollection(tables=split.schema.embedding_configs(4))
    names |= {"features": FeatureArch(tables), "AITM": AITM, "read_split": read_split}
    exec(second, names)
    batch = next(iter(BatchLoader(split, 50)))
    loss, (_, logits, labels) = names["train_model"](batch)
    assert loss.isfinite()
    assert (logits.shape[1], labels.shape[1]) == (names["tasks"].num_outputs, len(names["tasks"])) == (7, 4)


def test_every_kind_is_in_the_table():
    rows_ = re.findall(r"^\| `(\w+)\(.*\)` \| .* \| .* \| (.*) \|$", PAGE, re.M)
    assert [name for name, _ in rows_] == [kind.__name__ for kind in KINDS.values() if kind is not Binary]
    for name, labels in rows_:
        if name in ("Classes", "Ordinal"):
            (num_classes,) = re.findall(rf"`{name}\((\d)\)` \|", PAGE)
            assert labels == f"0 to {int(num_classes) - 1}"
        else:
            assert (labels == "at least 0") == ("at least 0" in getattr(kinds, name).rule)


def test_every_metric_of_values_is_in_the_table():
    named = {name for cell in re.findall(r"^\| (`.*?`) \|", PAGE, re.M) for name in re.findall(r"`(\w+)`", cell)}
    of_values = {name for name, metric in METRICS.items() if metric.score in ("value", "quantile")}
    assert of_values <= named


def test_methods_of_balancing_are_those_that_refuse():
    told = re.search(r"logarithms of losses \((.*?)\)", PAGE)[1]
    assert re.findall(r"`(\w+)`", told) == list(_OF_POSITIVE_LOSSES)


def test_the_log_has_what_the_page_says():
    assert rows(10).columns == ["split", "user", "item", "click", "buy", "spend", "dwell", "stars"]
