"""The pipeline that CUDA takes, on a CPU: the same run as with the other one.

`TORCHREC_MTL_PIPELINES=all` runs every system, plan and precision; otherwise a few, each value of which occurs.
"""

import itertools
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection

from tests import processes
from tests.jobs import funnel
from tests.support import TASKS, batch, train_model
from tests.training import ranks
from tests.training.test_checkpoint import configure
from torchrec_mtl.errors import InputError, TrainingError
from torchrec_mtl.metrics import METRICS
from torchrec_mtl.systems import SYSTEMS
from torchrec_mtl.training.checkpoint import checkpoints
from torchrec_mtl.training.config import PIPELINES, OptimizerConfig, TableConfig, TrainingConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.evaluation import evaluate
from torchrec_mtl.training.loop import TrainingLoop
from torchrec_mtl.training.monitor import Monitor
from torchrec_mtl.training.pipeline import chosen_pipeline
from torchrec_mtl.training.process_group import process_group, set_seed
from torchrec_mtl.training.sharding import plan_sharding

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
EVERYTHING = os.environ.get("TORCHREC_MTL_PIPELINES") == "all"  # as `make verify` does
PER_FIELD = ("bpcm", "tafe")  # these project fields of another dimension
PLANS = {
    "fused": (TableConfig("rowwise_adagrad", 0.05), {}),
    "mixed": (
        TableConfig("adagrad", 0.05),
        {
            "t0": {"sharding": "row_wise"},
            "t1": {"optimizer": "sgd", "sharding": "table_wise"},
            "t2": {"sharding": "data_parallel"},
            "t3": {"optimizer": "adam"},
        },
    ),
}
ALL = list(itertools.product(SYSTEMS, PLANS, ("fp32", "bf16")))
RESUMED, IN_PARTS = "tafe", "escm2_dr"
SOME = [
    ("shared_bottom", "mixed", "fp32"),
    ("single_task", "fused", "bf16"),
    ("escm2_dr", "mixed", "bf16"),
    ("bpcm", "fused", "fp32"),
    ("tafe", "mixed", "fp32"),
]


class Batches:
    """The same batches every epoch; in the last one, ranks other than the first have a row less."""

    def __init__(self, num_batches: int, seed: int) -> None:
        rank = dist.get_rank()
        self.batches = [batch(8, seed + 100 * i + rank, weighted=True) for i in range(num_batches)]
        self.batches[-1] = self.batches[-1].padded(1) if rank else self.batches[-1]
        self.batches[-1].num_rows_of_all = 7 * dist.get_world_size() + 1
        self.at = 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        at, self.at = self.at, 0
        return iter(self.batches[at:])

    def set_epoch(self, epoch):
        pass

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        self.at = state["step"]


def local(state):
    """The tensors of a state dict that this rank has."""
    shards = {name: value.local_shards() if hasattr(value, "local_shards") else value for name, value in state.items()}
    return {
        name: [shard.tensor for shard in value] if isinstance(value, list) else [value]
        for name, value in shards.items()
    }


def train(system: str, plan: str, precision: str, pipeline: str, folder: Path, stop_after: int = 0):
    """Two epochs of four batches with evaluations, and an evaluation after it."""
    table, tables = PLANS[plan]
    config = TrainingConfig(
        batch_size=8 * dist.get_world_size(),
        max_epochs=2,
        evaluations_per_epoch=1 + (system == RESUMED),
        micro_batches=1 + (system == IN_PARTS),
        patience=9,
        optimizer=OptimizerConfig(0.01),
        table=table,
        tables=tables,
        precision=precision,
        pipeline=pipeline,
    )
    set_seed(0)
    options = {"embedding_dim": 4} if SYSTEMS[system].base in PER_FIELD else {}
    model, optimizer = distribute(train_model(system, embedding_dims=(4, 8, 4, 8), **options), config, CPU)
    stop = ranks.StopAfter(stop_after) if stop_after else lambda: False
    arguments = (Batches(4, 0), Batches(2, 9000), TASKS, config, CPU, folder, Monitor(None), "train", stop)
    result = TrainingLoop(model, optimizer, *arguments).run()
    after = evaluate(model, Batches(1, 500), TASKS, CPU, metrics={"auc": METRICS["auc"]}).compute()
    return result, local(model.state_dict()), after


def same_run(cases: list[tuple[str, str, str]], folder: Path) -> None:
    for case in cases:
        own = folder / "-".join(case)
        expected = train(*case, "base", own / "base")
        runs = [train(*case, "sparse_dist", own / "sparse_dist")]
        if case[0] == RESUMED:
            stopped, *_ = train(*case, "sparse_dist", own / "resumed", stop_after=5)
            assert (stopped.stopped, stopped.step) == (True, 5)
            runs.append(train(*case, "sparse_dist", own / "resumed"))
        for result, weights, after in runs:
            assert repr(result.history) == repr(expected[0].history), case  # NaN is no NaN's equal
            assert result.step == (4 if case[0] == IN_PARTS else 8)
            assert (result.best_step, result.num_rows) == (expected[0].best_step, expected[0].num_rows)
            assert repr(after) == repr(expected[2]), case
            for name, tensors in weights.items():
                pairs = zip(tensors, expected[1][name], strict=True)
                assert all(torch.equal(one, other) for one, other in pairs), (case, name)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_the_pipeline_of_cuda_gives_the_same_run(tmp_path, world_size):
    """History, weights, and an evaluation after it; also gone on with after a stop between two evaluations."""
    processes.run(same_run, world_size, ALL if EVERYTHING else SOME, tmp_path)


def test_the_tables_of_every_system_are_pipelined(tmp_path):
    """None has an input transformation, which TorchRec's tracer would leave out without a word."""
    with process_group(CPU):
        for system in SYSTEMS:
            config = TrainingConfig(batch_size=8, pipeline="sparse_dist")
            model, optimizer = distribute(train_model(system), config, CPU)
            arguments = (Batches(3, 0), (), TASKS, config, CPU, tmp_path / system, Monitor(None))
            loop = TrainingLoop(model, optimizer, *arguments)
            loop.take_step()
            tables = [module for module in model.modules() if isinstance(module, ShardedEmbeddingBagCollection)]
            assert loop.pipeline._pipelined_modules == tables, system
            loop.close()


@pytest.mark.parametrize("pipeline", PIPELINES[1:])
def test_the_batch_that_stops_a_run_is_the_one_that_is_kept(pipeline, tmp_path):
    """A pipeline has read further ones by then."""
    config = TrainingConfig(batch_size=8, pipeline=pipeline)
    with process_group(CPU):
        model, optimizer = distribute(train_model("mmoe"), config, CPU)
        batches = Batches(5, 0)
        batches.batches[2].dense_features[3] = float("nan")
        with pytest.raises(
            TrainingError, match=r"^the loss of step 3 is not finite; rank 0: logits or labels of click in"
        ):
            TrainingLoop(model, optimizer, batches, (), TASKS, config, CPU, tmp_path, Monitor(None)).run()
    (file,) = tmp_path.glob("*.pt")
    assert torch.equal(torch.load(file)["labels"], batches.batches[2].labels)


def test_every_value_is_among_the_few():
    assert [{case[i] for case in SOME} for i in (1, 2)] == [{case[i] for case in ALL} for i in (1, 2)]


def _zero_collision(data: Path, folder: Path) -> None:
    for pipeline in ("base", "sparse_dist"):
        config = configure(pipeline=pipeline)
        ranks.train(config, data, folder / pipeline, zero_collision={"interval": 3, "buckets": 4})


@pytest.mark.slow
def test_ids_without_a_vocabulary_get_the_same_rows_in_either_pipeline(tmp_path):
    data = funnel.prepare(tmp_path / "data", train=321, valid=101)
    processes.run(_zero_collision, 2, data, tmp_path)
    base, sparse_dist = (ranks.contents(checkpoints(tmp_path / each / "checkpoints")[-1]) for each in PIPELINES[1:])
    assert base.keys() == sparse_dist.keys()
    assert [name for name in base if not torch.equal(base[name], sparse_dist[name])] == []
    assert repr(ranks.history(tmp_path / "base")) == repr(ranks.history(tmp_path / "sparse_dist"))


@pytest.mark.parametrize(("dim", "system"), [(5, "bpcm"), (18, "tafe")])
def test_the_papers_sizes_train_replicated_where_a_gpu_would(dim, system, tmp_path):
    """fbgemm's operators have no such dimensions; Adam over whole tables, as the papers take, needs none of them."""
    config = TrainingConfig(batch_size=8, table=TableConfig("adam", 1e-3))
    model = train_model(system, embedding_dims=(dim,) * 4, num_heads=1 if system == "bpcm" else 2)
    assert not plan_sharding(model, config, CUDA, world_size=2, local_world_size=2).plan
    with process_group(CPU):
        model, optimizer = distribute(model, config, CPU)
        assert chosen_pipeline("auto", model, CUDA) == "base"
        loop = TrainingLoop(model, optimizer, Batches(2, 0), Batches(2, 9), TASKS, config, CPU, tmp_path, Monitor(None))
        assert loop.run().step == 2


def test_each_device_has_its_pipeline():
    with process_group(CPU):
        model, _ = distribute(train_model("mmoe"), TrainingConfig(), CPU)
        assert [chosen_pipeline("auto", model, device) for device in (CPU, CUDA)] == ["base", "sparse_dist"]
        assert [chosen_pipeline(name, model, CUDA) for name in PIPELINES[1:]] == list(PIPELINES[1:])


def test_a_pipeline_without_sharded_tables_is_told_before_training(tmp_path):
    config = TrainingConfig(table=TableConfig("adam"), pipeline="sparse_dist")
    with process_group(CPU):
        model, optimizer = distribute(train_model("mmoe"), config, CPU)
        sentence = r"`pipeline` \(='sparse_dist'\) must be 'auto' or 'base' if every table is replicated"
        with pytest.raises(InputError, match=sentence):
            TrainingLoop(model, optimizer, Batches(2, 0), (), TASKS, config, CPU, tmp_path, Monitor(None))
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("system", ["mmoe", "tafe"])
def test_adam_is_adam_on_every_device(system):
    """Replicated, so that every row moves in every step; the sparse one is another name."""
    model = train_model(system)
    for device in (CPU, CUDA):
        config = TrainingConfig(table=TableConfig("adam"), tables={"t0": {"optimizer": "sgd"}})
        (of_tables,) = plan_sharding(model, config, device, world_size=2, local_world_size=2).plan.values()
        kinds = {name: sharding.sharding_type for name, sharding in of_tables.items()}
        assert {name for name, kind in kinds.items() if kind == "data_parallel"} == {"t1", "t2", "t3"}
    for device, name in itertools.product((CPU, CUDA), ("sparse_adam", "rowwise_adam")):
        config = TrainingConfig(table=TableConfig(name))
        (of_tables,) = plan_sharding(model, config, device, world_size=2, local_world_size=2).plan.values()
        assert not any(sharding.sharding_type == "data_parallel" for sharding in of_tables.values())


@pytest.mark.parametrize(
    ("device", "table", "sentence"),
    [
        (CPU, TableConfig("rowwise_adam", sharding="data_parallel"), r"of t0 must be 'adam' if the table is repl"),
        (CUDA, TableConfig("sparse_adam", sharding="data_parallel"), r"of t0 must be 'adam' if the table is repl"),
        (CUDA, TableConfig("adam", sharding="row_wise"), r"`sharding` \(='row_wise'\) of t0 must be 'auto' with adam"),
    ],
)
def test_an_optimizer_that_a_table_cannot_have_is_told(device, table, sentence):
    with pytest.raises(InputError, match=sentence):
        plan_sharding(train_model("mmoe"), TrainingConfig(table=table), device, world_size=2, local_world_size=2)
