"""The benchmark's arithmetic beside counts by hand; and its two stacks, which must train alike."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from benchmarks.scaling.cluster import Cluster
from benchmarks.scaling.cost import Choice, Cost, plan, price
from benchmarks.scaling.measure import compare_losses, overheads, throughputs
from benchmarks.scaling.on_paper import rows_of
from benchmarks.scaling.stacks import Bare, Ours
from benchmarks.scaling.subjects import SUBJECTS
from benchmarks.scaling.workload import Workload
from torchrec.modules.embedding_configs import DataType

from benchmarks.scaling import parts
from tests import processes

SMALL = Workload(table_bytes=512e6, num_tables=2, exponent=0.0, expert_layer_sizes=(16, 8), batch_size=1024)
NODE = Cluster(num_gpus=8)
TABLE_WISE = Choice("table-wise", sharding=("table_wise",))


def test_tables_are_of_power_law_sizes_that_add_up():
    rows = Workload(table_bytes=1e12, num_tables=26, exponent=1.5, embedding_dim=128).table_rows()
    assert sum(rows) * 512 == pytest.approx(1e12, rel=1e-6)
    assert rows[0] / rows[3] == pytest.approx(8, rel=1e-6)


def test_flops_and_parameters_of_the_dense_part():
    """PLE of three tasks on two tables and the dense features, which are three fields of 8."""
    flops, parameters = Workload(num_tables=2, embedding_dim=8, num_dense=5, expert_layer_sizes=(16, 4)).dense_cost()
    first, experts = 5 * 512, 8 * (24 * 16 + 16 * 4) + 8 * (4 * 16 + 16 * 4)
    gates = 3 * 24 * 4 + 24 * 8 + 3 * 4 * 4
    towers = 3 * (4 * 64 + 64)
    products = first + 512 * 8 + experts + gates + towers
    biases = 512 + 8 + 2 * 8 * (16 + 4) + 3 * (64 + 1)
    assert parameters == products + biases
    mixing = 3 * 4 * 4 + 8 * 4 + 3 * 4 * 4  # experts weighed by gates, as a product of matrices
    assert flops == 3 * 2 * (products + mixing) - 2 * first  # forward, two products backward; features have no gradient


def test_a_plan_costs_what_a_count_by_hand_says():
    planned = plan(SMALL, NODE, TABLE_WISE)
    assert planned is not None
    cost = price(planned, SMALL, NODE)
    rows, of_all = 500_000, 1024 * 8
    sent = of_all * 512  # a table's rows for the whole batch
    assert cost.all_to_all == pytest.approx(2 * sent / 360e6)
    assert cost.lookup == pytest.approx(3 * (of_all * 8 + 2 * sent) / (0.8 * 3350e6), rel=0.01)
    assert cost.hbm_gb == pytest.approx((rows * (512 + 4) + of_all * 8 + sent) / 1e9, rel=1e-3)
    assert cost.host_gb == 0
    assert cost.shardings == {"table_wise": 2}


def test_between_nodes_the_network_carries_the_exchange():
    within, between = (price(plan(SMALL, c, TABLE_WISE), SMALL, c) for c in (NODE, Cluster(num_gpus=16)))
    assert between.all_to_all == pytest.approx(2 * 9 * within.all_to_all)  # twice the rows, a ninth of the bandwidth


def test_half_precision_exchange_takes_half_the_time():
    half = Choice("half", sharding=("table_wise",), half_communication=True)
    full, halved = (price(plan(SMALL, NODE, choice), SMALL, NODE) for choice in (TABLE_WISE, half))
    assert halved.all_to_all == pytest.approx(full.all_to_all / 2)


def test_half_precision_tables_take_half_the_memory():
    def table_bytes(data_type: DataType) -> int:
        tables = SMALL.on_meta(data_type).model.features.embedding_bag_collection
        return sum(p.numel() * p.element_size() for p in tables.parameters())

    assert table_bytes(DataType.FP32) == 2 * table_bytes(DataType.FP16) == 512_000_000


def test_all_reduce_and_agreement():
    assert NODE.all_reduce_ms(360e6) == pytest.approx(2 * 7 / 8)
    assert Cluster(num_gpus=64, network_bandwidth=5).all_reduce_ms(32e6) == pytest.approx(2 * 63 / 64)
    assert Cluster(num_gpus=512, message_us=10).agreement_ms() == pytest.approx(10.22)
    assert Cluster(num_gpus=1).agreement_ms() == 0


def test_a_step_is_the_sum_of_its_terms_and_hides_the_all_reduce_behind_the_backward_pass():
    cost = Cost(1.0, 2.0, 3.0, all_reduce=2.5, agreement=0.25, input=9.0, hbm_gb=1.0, host_gb=0.0)
    assert cost.terms["all-reduce"] == 0.5
    assert cost.step == 6.75
    assert cost.binding == "dense"


def test_tables_that_do_not_fit_are_said_not_to():
    clusters = [Cluster(num_gpus=number, hbm_gb=0.05) for number in (8, 16)]  # 516 MB of tables, 15 % are kept free
    rows = rows_of(replace(SMALL, batch_size=64), clusters, Choice("row-wise", sharding=("row_wise",)))
    assert [row["fits"] for row in rows] == [False, True]
    assert "step_ms" not in rows[0]
    assert rows[1]["efficiency"] == 1


def test_figures_of_runs():
    def run(*overheads: float) -> dict:
        blocks = [{"bare": (0.5, 1.0), "ours": (0.5 * (1 + o), 1 + 2 * o)} for o in overheads]
        return {"blocks": blocks, "loss_difference": overheads[0] / 10}

    runs = [run(0.1, 0.2, 0.3), run(0.0, 0.0, 0.1)]
    bare, ours = throughputs(runs, batch_size=100)
    assert (bare["median"], ours["median"], bare["repeats"]) == (200, 182, 6)
    wall, processor, added = overheads(runs)
    assert wall["median"] == 10
    assert (wall["lowest_run"], wall["highest_run"]) == (0, 20)
    assert processor["highest_run"] == 40
    assert added["median"] == 50
    assert wall["loss_difference"] == 0.01


def test_what_the_loop_costs_at_most():
    step = {"step": 110.0, "pipeline": 109.0, "call": 49.0, "model": 40.0, "agreement": 8.0}
    _, agreement, python, both = parts.summary([step] * 3)
    assert (agreement["median"], python["median"], both["median"]) == (8, 2, 10)


def _both_train_alike(name: str, directory: Path) -> None:
    subject = SUBJECTS[name](16, 50, dist.get_rank())
    bare, ours = Bare(subject), Ours(subject, 32, directory)
    bare.model.load_state_dict(ours.model.state_dict())
    assert compare_losses(bare, ours) < 2e-6
    with torch.no_grad():
        next(p for p in bare.model.parameters() if p.requires_grad).add_(0.01)
    with pytest.raises(RuntimeError, match="losses of step"):
        compare_losses(bare, ours)


@pytest.mark.parametrize("name", SUBJECTS)
def test_both_stacks_train_alike(name: str, tmp_path: Path):
    processes.run(_both_train_alike, 2, name, tmp_path)
