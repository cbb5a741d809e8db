"""Tables in fp16: a step is that of float32, rounded; tables of other kinds; bytes; and what cannot be."""

import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig
from torchrec.modules.embedding_configs import DataType

from tests import processes
from tests.jobs import funnel
from tests.training import ranks, test_sharded_rows, test_zero_collision
from tests.training.pooled import RATE, Net, expected, table_batched_modules, tables, train
from tests.training.test_distributed import build_on_shared_tables, whole_weights
from torchrec_mtl.errors import InputError
from torchrec_mtl.training.config import TableConfig, TrainingConfig
from torchrec_mtl.training.distributed import distribute
from torchrec_mtl.training.memory import table_bytes
from torchrec_mtl.training.plan_report import describe_plan
from torchrec_mtl.training.process_group import process_group
from torchrec_mtl.training.sharding import plan_sharding

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
HALF, SMALLEST = 2.0**-11, 2.0**-25  # errors of rounding to fp16: relative, and of what is nearly 0
ONE_RANK = [("rowwise_adagrad", "auto"), ("sgd", "table_wise"), ("adagrad", "table_wise")]
TWO_RANKS = [("rowwise_adagrad", kind) for kind in ("auto", "table_wise", "row_wise", "table_row_wise")]
TWO_RANKS += [("sgd", "row_wise"), ("sgd", "grid_shard"), ("adagrad", "column_wise"), ("adagrad", "table_column_wise")]


def weights_of(model):
    return [w.clone() for name, w in whole_weights(model).items() if ".weight" in name]


def a_step(cases):
    """Row-wise Adagrad rounds the sum once; SGD and Adagrad round what they add to the table too."""
    for number, (optimizer, sharding) in enumerate(cases):
        mean, weighted = number % 3 == 1 and sharding != "grid_shard", number % 3 == 2
        config = TrainingConfig(table=TableConfig(optimizer, RATE, sharding, "fp16"), seed=number)
        model, _ = distribute(Net(tables(mean, is_weighted=weighted)), config, CPU)
        assert {module.weights_precision.value for module in table_batched_modules(model)} <= {"fp16"}
        before = weights_of(model)
        train(model, range(1, 2), dist.get_rank(), dist.get_world_size(), weighted)
        exact = expected(before, optimizer, range(1, 2), mean, weighted)
        for was, now, should in zip(before, weights_of(model), exact, strict=True):
            added = 0 if optimizer == "rowwise_adagrad" else (should - was).abs()
            errors = (now - should).abs() - 1.01 * HALF * (should.abs() + added) - 2 * SMALLEST
            assert errors.max() <= 0, (optimizer, sharding)
            assert now.half().float().equal(now)
            assert (now - was).abs().max() > RATE / 10


def test_a_step_on_one_rank_is_that_of_float32_rounded():
    with process_group(CPU):
        a_step(ONE_RANK)


def test_a_step_on_two_ranks_is_that_of_float32_rounded():
    """However the tables are sharded; so what two ranks make differs from what one makes by rounding alone."""
    processes.run(a_step, 2, TWO_RANKS)


def test_rows_of_histories_are_rounded_too():
    config = TrainingConfig(table=TableConfig("rowwise_adagrad", test_sharded_rows.RATE, precision="fp16"))
    with process_group(CPU):
        model, _ = distribute(test_sharded_rows.Net(), config, CPU)
        start = {name.split(".")[-2]: w.clone() for name, w in whole_weights(model).items() if "embeddings" in name}
        test_sharded_rows.train(model)
        after = {name.split(".")[-2]: w for name, w in whole_weights(model).items() if "embeddings" in name}
        for name, exact in test_sharded_rows.expected(start, "rowwise_adagrad").items():
            assert after[name].half().float().equal(after[name])
            steps = 1.1 * test_sharded_rows.STEPS
            torch.testing.assert_close(after[name].double(), exact, rtol=steps * HALF, atol=steps * HALF / 4)


def test_ids_without_a_vocabulary_have_rows_in_fp16_that_start_anew(tmp_path):
    data = funnel.prepare(tmp_path / "data", train=160, valid=32)
    config = TrainingConfig(batch_size=32, table=TableConfig("rowwise_adagrad", 0.05, precision="fp16"))
    with process_group(CPU):
        _, model = ranks.train(config, data, tmp_path, zero_collision=test_zero_collision.ARGUMENTS)
        found = {name: w for name, w in model.state_dict().items() if "embedding_bags" in name}
        assert {w.dtype for w in found.values()} == {torch.float16}
        assert all(shard.tensor.isfinite().all() for w in found.values() for shard in w.local_shards())


def test_a_single_table_and_the_type_of_its_config():
    """A config's own type stays where the settings leave it; configs that another model has are not changed."""
    configs = [EmbeddingBagConfig(8, 4, name, feature_names=[name]) for name in ("a", "b", "c")]
    configs[2].data_type = DataType.FP16
    net = torch.nn.ModuleDict({"tables": EmbeddingBagCollection(tables=configs, device=torch.device("meta"))})
    config = TrainingConfig(table=TableConfig("sgd"), tables={"b": {"precision": "fp16"}})
    with process_group(CPU):
        model, _ = distribute(net, config, CPU)
    types = {name.split(".")[-2]: w.dtype for name, w in model.state_dict().items()}
    assert types == {"a": torch.float32, "b": torch.float16, "c": torch.float16}
    assert [each.data_type.value for each in configs] == ["FP32", "FP32", "FP16"]


def test_the_plan_tells_half_the_bytes():
    """2 bytes a weight, and a row-wise state of 4 bytes a row."""
    model, config = build_on_shared_tables(), TrainingConfig(table=TableConfig(sharding="row_wise", precision="fp16"))
    with process_group(CPU):
        plan = plan_sharding(model, config, CPU, world_size=2, local_world_size=2)
    rows = {"t0": (6, 5, 8), "t1": (4, 3, 16), "t2": (20, 20, 4), "t3": (7, 6, 12)}
    first, second = (sum(r[rank] * (2 * r[2] + 4) for r in rows.values()) / 1e6 for rank in (0, 1))
    assert describe_plan(plan, model, config, 2).endswith(f"MB a rank: {first:.1f}, {second:.1f}")


def test_the_page_has_the_bytes_of_a_row():
    page = (ROOT / "docs" / "sharding.md").read_text(encoding="utf-8").replace(",", "")
    of_row = re.search(r"Adagrad takes (\d+) bytes instead of (\d+) one with Adagrad (\d+)\s+instead of (\d+);", page)
    kinds = [(each, kind) for each in ("rowwise_adagrad", "adagrad") for kind in (DataType.FP16, DataType.FP32)]
    tables = [(EmbeddingBagConfig(1, 128, "t", kind, ["f"]), optimizer) for optimizer, kind in kinds]
    assert [int(each) for each in of_row.groups()] == [table_bytes(*each) for each in tables]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adam"}, r"must be 'fp32' with `optimizer` \(='adam'\), which replicates the table"),
        ({"sharding": "data_parallel"}, r"must be 'fp32' with `sharding` \(='data_parallel'\), which replicates the"),
        ({"precision": "bf16"}, r"`precision` \(='bf16'\) must be one of"),
    ],
)
def test_what_cannot_be_in_16_bits_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        TableConfig(**{"precision": "fp16", **options})
    with pytest.raises(InputError, match=f"`tables` of t: .*{message}"):
        TrainingConfig(tables={"t": {"precision": "fp16", **options}})


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("optimizer", ["sparse_adam", "rowwise_adam"])
def test_on_a_cpu_the_kernels_of_adam_take_fp32(optimizer):
    config = TrainingConfig(table=TableConfig(optimizer, precision="fp16"))
    message = rf"`optimizer` \(='{optimizer}'\) of t0 must be another for a table in FP16: on a CPU it takes FP32"
    with process_group(CPU), pytest.raises(InputError, match=message):
        plan_sharding(Net(tables()), config, CPU)
