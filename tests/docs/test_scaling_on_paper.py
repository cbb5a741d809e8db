"""The arithmetic of `docs/scaling_on_paper.py` beside counts by hand; and that the page shows what it computed."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from torchrec.modules.embedding_configs import DataType

from docs.scaling_on_paper import TABLES, Choice, Cluster, Workload, dense_cost, line, main, plan, price, rows_of, step

DOCS = Path(__file__).parents[2] / "docs"
SMALL = Workload(table_bytes=512e6, num_tables=2, exponent=0.0, expert_layer_sizes=(16, 8), batch_size=1024)
NODE = Cluster(num_gpus=8)
TABLE_WISE = Choice("table-wise", sharding=["table_wise"])


def cost(cluster: Cluster = NODE, choice: Choice = TABLE_WISE) -> dict:
    planned = plan(SMALL, cluster, choice)
    assert planned is not None
    return price(planned, SMALL, cluster)


def test_tables_are_of_power_law_sizes_that_add_up():
    rows = Workload(table_bytes=1e12, num_tables=26, exponent=1.5, embedding_dim=128).table_rows()
    assert sum(rows) * 512 == pytest.approx(1e12, rel=1e-6)
    assert rows[0] / rows[3] == pytest.approx(8, rel=1e-6)


def test_flops_and_parameters_of_the_dense_part():
    """PLE of three tasks on two tables and the dense features, which are three fields of 8."""
    small = Workload(num_tables=2, embedding_dim=8, num_dense=5, expert_layer_sizes=(16, 4))
    flops, parameters = dense_cost(small)
    first, experts = 5 * 512, 8 * (24 * 16 + 16 * 4) + 8 * (4 * 16 + 16 * 4)
    gates = 3 * 24 * 4 + 24 * 8 + 3 * 4 * 4
    towers = 3 * (4 * 64 + 64)
    products = first + 512 * 8 + experts + gates + towers
    biases = 512 + 8 + 2 * 8 * (16 + 4) + 3 * (64 + 1)
    assert parameters == products + biases
    mixing = 3 * 4 * 4 + 8 * 4 + 3 * 4 * 4  # experts weighed by gates, as a product of matrices
    assert flops == 3 * 2 * (products + mixing) - 2 * first  # forward, two products backward; features have no gradient


def test_a_plan_costs_what_a_count_by_hand_says():
    found, rows, of_all = cost(), 500_000, 1024 * 8
    sent = of_all * 512  # a table's rows for the whole batch
    assert found["all_to_all_ms"] == pytest.approx(2 * sent / 360e6)
    assert found["lookup_ms"] == pytest.approx(3 * (of_all * 8 + 2 * sent) / (0.8 * 3350e6), rel=0.01)
    assert found["used_hbm_gb"] == pytest.approx((rows * (512 + 4) + of_all * 8 + sent) / 1e9, rel=1e-3)
    assert found["used_host_gb"] == 0
    assert found["shardings"] == "2 table_wise"
    assert found["dense_ms"] == pytest.approx(1024 * dense_cost(SMALL)[0] / (0.4 * 989e9))


def test_between_nodes_the_network_carries_the_exchange():
    ratio = cost(Cluster(num_gpus=16))["all_to_all_ms"] / cost()["all_to_all_ms"]
    assert ratio == pytest.approx(2 * 9)  # twice the rows, a ninth of the bandwidth


def test_half_precision_exchange_takes_half_the_time():
    half = cost(choice=Choice("half", sharding=["table_wise"], half_communication=True))
    assert half["all_to_all_ms"] == pytest.approx(cost()["all_to_all_ms"] / 2)


def test_half_precision_tables_take_half_the_memory():
    def table_bytes(data_type: DataType) -> int:
        tables = SMALL.build(SMALL.table_rows(), data_type, "meta").get_submodule(TABLES)
        return sum(p.numel() * p.element_size() for p in tables.parameters())

    assert table_bytes(DataType.FP32) == 2 * table_bytes(DataType.FP16) == 512_000_000


def test_all_reduce_and_agreement():
    assert NODE.all_reduce_ms(360e6) == pytest.approx(2 * 7 / 8)
    assert Cluster(num_gpus=64, network_bandwidth=5).all_reduce_ms(32e6) == pytest.approx(2 * 63 / 64)
    assert cost(Cluster(num_gpus=8, message_us=20, wait_us=30))["agreement_ms"] == pytest.approx(0.15)


def test_a_step_is_the_sum_of_its_terms_and_hides_the_all_reduce_behind_the_backward_pass():
    found = step(1.0, 2.0, 3.0, all_reduce=2.5, agreement=0.25)
    assert found["all_reduce_ms"] == 0.5
    assert found["step_ms"] == 6.75
    assert found["binds"] == "dense"


def test_tables_that_do_not_fit_are_said_not_to():
    clusters = [Cluster(num_gpus=number, hbm_gb=0.05) for number in (8, 16)]  # 516 MB of tables, 15 % are kept free
    first, second = rows_of(replace(SMALL, batch_size=64), clusters, Choice("row-wise", sharding=["row_wise"]))
    assert (first["fits"], second["fits"]) == (False, True)
    assert "step_ms" not in first
    assert second["efficiency"] == 1


def test_it_runs_small(tmp_path: Path, capsys: pytest.CaptureFixture):
    main(["--gpus", "16", "8", "--table-bytes", "5e8", "--num-tables", "2", "--hbm-gb", "1", "--folder", str(tmp_path)])
    rows = list(csv.DictReader((tmp_path / "scaling_on_paper.csv").open()))
    assert [row["gpus"] for row in rows] == ["8", "16"] * 7
    assert {row["batch_size"] for row in rows[:12]} == {"4096"} != {row["batch_size"] for row in rows[12:]}
    assert {(row["hbm_gb"], row["message_us"]) for row in rows} == {("1.0", "10.0")}
    assert [line(row, number) for number, row in enumerate(rows, 2)] == capsys.readouterr().out.splitlines()
    assert (tmp_path / "scaling.png").stat().st_size > 10_000


def test_the_page_has_every_row():
    page = (DOCS / "scaling.md").read_text(encoding="utf-8").splitlines()
    with (DOCS / "scaling_on_paper.csv").open() as rows:
        for number, row in enumerate(csv.DictReader(rows), 2):
            assert line(row, number) in page
