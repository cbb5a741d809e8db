"""The loop: when it stops, which weights it leaves, what it seeds."""

import itertools
import json
import re

import pytest
import torch
from torchrec import EmbeddingBagCollection
from torchrec.optim.keyed import KeyedOptimizerWrapper

from tests.foreign_metric import KNOWN
from tests.support import NUM_DENSE, TASKS, batch, tables
from torchrec_mtl import MultiTaskTrain
from torchrec_mtl.errors import InputError
from torchrec_mtl.losses import CrossEntropyLoss
from torchrec_mtl.metrics import METRICS, MultiTaskMetrics
from torchrec_mtl.models import SharedBottom
from torchrec_mtl.modules import FeatureArch
from torchrec_mtl.training.checkpoint import best_checkpoint, read_manifest
from torchrec_mtl.training.config import OptimizerConfig, TableConfig, TrainingConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.evaluation import evaluate, mean_over_tasks
from torchrec_mtl.training.loop import TrainingLoop
from torchrec_mtl.training.monitor import Monitor
from torchrec_mtl.training.process_group import process_group, set_seed

CPU = torch.device("cpu")


class Batches:
    """The same batches every epoch."""

    def __init__(self, num_batches: int, seed: int) -> None:
        self.batches = [batch(32, seed + i) for i in range(num_batches)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)

    def set_epoch(self, epoch: int) -> None:
        pass

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        raise NotImplementedError


def shared_bottom(collection):
    features = FeatureArch(collection, dense_in_features=NUM_DENSE, dense_arch_layer_sizes=(4,))
    return SharedBottom(features, TASKS)


def train(directory, learning_rate, metrics=METRICS, **options):
    """Returns the result, the model and the batches; the labels are noise, so a model can only overfit."""
    config = TrainingConfig(
        batch_size=32,
        optimizer=OptimizerConfig(learning_rate),
        table=TableConfig("adam", learning_rate),
        **options,
    )
    train_batches, valid_batches = Batches(7, 0), Batches(3, 100)
    set_seed(config.seed)
    model = shared_bottom(tables(device="meta"))
    model, optimizer = distribute(MultiTaskTrain(model, CrossEntropyLoss(TASKS)), config, CPU)
    monitor = Monitor(directory)
    loop = TrainingLoop(
        model, optimizer, train_batches, valid_batches, TASKS, config, CPU, directory, monitor, metrics=metrics
    )
    result = loop.run()
    monitor.close()
    return result, model, valid_batches


@pytest.fixture(autouse=True)
def _group():
    with process_group(CPU):
        yield


def test_the_loss_is_recorded_at_the_pace_that_is_set(tmp_path):
    """Every record is the mean since the one before; together they are the mean of the whole run."""
    means = {}
    for pace in (0, 3):
        folder = tmp_path / str(pace)
        train(folder, 0.05, max_epochs=2, evaluations_per_epoch=2, log_interval=pace)  # 7 steps, evaluated after 4
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses = {row["step"]: row["value"] for row in rows if row["metric"] == "loss"}
        assert list(losses) == ([3, 4, 6, 7, 9, 11, 12, 14] if pace else [4, 7, 11, 14])
        steps = [0, *losses]
        means[pace] = sum(losses[b] * (b - a) for a, b in itertools.pairwise(steps)) / 14
    assert means[0] == pytest.approx(means[3], abs=1e-12)


def test_an_epoch_has_one_bar_and_without_a_terminal_a_line_now_and_then(tmp_path, capsys, monkeypatch):
    train(tmp_path / "short", 0.05, max_epochs=2, evaluations_per_epoch=2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("torchrec_mtl.training.monitor.SECONDS_BETWEEN_LINES", 0.0)
    train(tmp_path / "long", 0.05, max_epochs=2, evaluations_per_epoch=2)
    lines = capsys.readouterr().err.splitlines()
    form = r"train epoch [12]/2: \d+% of 224 samples, .* samples/s, \d\d:\d\d left(, loss [\d.]+)?"
    assert lines
    assert all(re.fullmatch(form, line) for line in lines), lines


BEST = {
    "auc": max,
    "average_precision": max,
    "log_loss": min,
    "calibration": lambda means, key: min(means, key=lambda step: abs(key(step) - 1)),
}


@pytest.mark.parametrize("metric", BEST)
def test_the_weights_that_are_best_by_the_metric_are_left(tmp_path, capsys, metric):
    options = {"max_epochs": 4, "evaluations_per_epoch": 2, "patience": 8, "seed": 1, "early_stopping_metric": metric}
    result, model, valid_batches = train(tmp_path, 0.05, KNOWN, **options)
    scores = {}
    for row in result.history:
        if (row["metric"], row["space"]) == (metric, "impressions"):
            scores.setdefault(row["step"], []).append(row["value"])
    means = {step: sum(values) / len(values) for step, values in scores.items()}
    assert list(means) == [4, 7, 11, 14, 18, 21, 25, 28]
    assert result.best_step == BEST[metric](means, key=means.get)
    assert result.best_step != 28, "nothing to restore: choose another seed"
    assert result.best_score == pytest.approx(means[result.best_step], abs=1e-12)
    assert read_manifest(best_checkpoint(tmp_path / "checkpoints"))["step"] == result.best_step
    left = mean_over_tasks(evaluate(model, valid_batches, TASKS, CPU, metrics=KNOWN).compute(), metric)
    assert left == pytest.approx(result.best_score, abs=1e-12)
    assert f"validation {KNOWN[metric].title} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("metric", "sentence"),
    [
        ("average_precison", r"`early_stopping_metric` \(='average_precison'\) .*; the nearest is 'average_precision'"),
        ("gauc", r"`early_stopping_metric` \(='gauc'\) must be a metric without groups"),
    ],
)
def test_a_metric_that_cannot_be_measured_is_told_before_training(tmp_path, metric, sentence):
    with pytest.raises(InputError, match=sentence):
        train(tmp_path, 0.05, KNOWN, early_stopping_metric=metric)
    assert not (tmp_path / "checkpoints").exists()


def test_a_metric_that_is_defined_nowhere_is_told():
    rows = [{"task": "click", "space": "impressions", "metric": "auc", "value": float("nan")}]
    with pytest.raises(InputError, match="positives and negatives of a task for `auc` to be defined"):
        mean_over_tasks(rows, "auc")


def test_rows_are_grouped_as_told():
    torch.manual_seed(0)
    model = MultiTaskTrain(shared_bottom(tables()), CrossEntropyLoss(TASKS))
    batches, groups = Batches(2, 0).batches, [torch.arange(32) % 3, torch.arange(32) % 5]
    with torch.no_grad():
        logits = torch.cat([model(batch)[1][1] for batch in batches])
    expected = MultiTaskMetrics(TASKS, with_groups=True)
    expected.update(logits, torch.cat([batch.labels for batch in batches]), None, torch.cat(groups))
    found = evaluate(model, batches, TASKS, CPU, groups).compute()
    assert found == expected.compute()
    assert any(row["metric"] == "gauc" for row in found)


def test_training_stops_after_patience_evaluations_without_gain(tmp_path):
    result, *_ = train(tmp_path, 0.0, max_epochs=9, evaluations_per_epoch=2, patience=3)
    assert result.best_step == 4
    assert sorted({row["step"] for row in result.history}) == [4, 7, 11, 14]  # the best and three more


def test_rates_fall_linearly_to_zero(tmp_path):
    """With them at zero the last steps change nothing; a constant rate changes as much as at first."""
    torch.manual_seed(0)
    changes = {}
    for decay in ("none", "linear"):
        config = TrainingConfig(batch_size=32, max_epochs=3, learning_rate_decay=decay)
        rates = []

        class Recorded(torch.optim.SGD):
            def step(self, closure=None, rates=rates):
                rates.append(self.param_groups[0]["lr"])
                return super().step(closure)

        model = MultiTaskTrain(shared_bottom(tables()), CrossEntropyLoss(TASKS))
        optimizer = KeyedOptimizerWrapper(dict(model.named_parameters()), lambda params: Recorded(params, lr=1.0))
        arguments = (TASKS, config, CPU, tmp_path / decay, Monitor(None))
        TrainingLoop(model, optimizer, Batches(2, 0), Batches(1, 9), *arguments).run()
        changes[decay] = rates
    assert changes["none"] == [1.0] * 6
    assert changes["linear"] == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])


def test_replicated_tables_start_from_their_own_initialisation():
    collection = tables(device="meta")
    for config in collection.embedding_bag_configs():
        config.init_fn = lambda table: torch.nn.init.constant_(table, 0.25)
    model = MultiTaskTrain(shared_bottom(collection), CrossEntropyLoss(TASKS))
    distribute(model, TrainingConfig(table=TableConfig("adam")), CPU)
    found = [m for m in model.modules() if isinstance(m, EmbeddingBagCollection)]
    assert all((p == 0.25).all() for m in found for p in m.parameters())


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: TrainingConfig(patience=0), r"`patience` \(=0\) must be at least 1"),
        (lambda: TrainingConfig(learning_rate_decay="cosine"), r"`learning_rate_decay` \(='cosine'\) must be one of"),
        (lambda: OptimizerConfig(learning_rate=-1), r"`learning_rate` \(=-1\) must be at least 0"),
    ],
)
def test_a_wrong_configuration_is_told(make, sentence):
    with pytest.raises(InputError, match=sentence):
        make()


def test_autocast_is_for_training_alone(tmp_path):
    """Validation chooses the weights, so it measures as the test split is measured."""
    noticed = []

    class Noticing(Batches):
        def __iter__(self):
            noticed.append(torch.is_autocast_enabled("cpu"))
            return super().__iter__()

    config = TrainingConfig(batch_size=32, precision="bf16", table=TableConfig("adam"))
    model = shared_bottom(tables(device="meta"))
    model, optimizer = distribute(MultiTaskTrain(model, CrossEntropyLoss(TASKS)), config, CPU)
    TrainingLoop(model, optimizer, Noticing(2, 0), Noticing(1, 9), TASKS, config, CPU, tmp_path, Monitor(None)).run()
    assert noticed == [True, False]  # train, valid
