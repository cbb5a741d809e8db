"""What is counted, that a wrong candidate is caught, and that right ones are right on one rank and on two."""

import csv
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks import record
from benchmarks.embedding_throughput import __main__ as program
from benchmarks.embedding_throughput import check, grid, naming
from benchmarks.embedding_throughput.measure import Job
from benchmarks.embedding_throughput.ranks import in_ranks
from benchmarks.embedding_throughput.results import throughput_rows
from benchmarks.embedding_throughput.summary import summary
from benchmarks.embedding_throughput.traffic import copied_bytes, table_bytes
from benchmarks.embedding_throughput.workload import CRITEO, Batch, Workload, draw_ids
from torchrec_mtl.errors import InputError

CPU = torch.device("cpu")
SMALL = Workload(embedding_dim=8, ids_a_bag=3)
GENERATOR = torch.Generator


def test_table_sets():
    assert len(CRITEO) == 26
    assert sum(CRITEO) == 177_944_275
    assert Workload(max_rows=50).table_rows == [min(rows, 50) for rows in CRITEO]
    ali_ccp = Workload(tables="ali_ccp", max_rows=10**9).table_rows
    assert (len(ali_ccp), max(ali_ccp)) == (18, 467_298)
    assert Workload(tables="synthetic", num_tables=3, rows=7).table_rows == [7, 7, 7]


WRONG = [
    ({"tables": "criteo_kaggle"}, "`tables` (='criteo_kaggle') must be one of"),
    ({"precision": "bf16"}, "`precision` (='bf16') must be one of"),
    ({"embedding_dim": 6}, "`embedding_dim` (=6) must be a multiple of 4"),
    ({"ids_a_bag": 0}, "`ids_a_bag` (=0) must be at least 1"),
    ({"exponent": -1.0}, "`exponent` (=-1.0) must be at least 0"),
]


@pytest.mark.parametrize(("changes", "sentence"), WRONG)
def test_a_wrong_workload_is_told(changes, sentence):
    with pytest.raises(InputError) as error:
        Workload(**changes)
    assert str(error.value).startswith(sentence)


def test_ids_follow_zipfs_law():
    rows, count, exponent = 50, 200_000, 1.2
    frequencies = draw_ids(rows, count, exponent, GENERATOR().manual_seed(0)).bincount(minlength=rows).double() / count
    weights = torch.arange(1, rows + 1).double() ** -exponent
    torch.testing.assert_close(
        frequencies.sort(descending=True).values, weights / weights.sum(), atol=3e-3, rtol=0, check_dtype=False
    )
    uniform = draw_ids(rows, count, 0, GENERATOR().manual_seed(0)).bincount(minlength=rows) / count
    assert (uniform - 1 / rows).abs().max() < 3e-3


def test_ranks_divide_one_batch():
    (whole,) = SMALL.batches(1, seed=5)
    parts = [SMALL.batches(1, 5, rank, 4)[0] for rank in range(4)]
    assert torch.equal(torch.cat([part.ids for part in parts], 1), whole.ids)
    assert torch.equal(torch.cat([part.gradient for part in parts]), whole.gradient)
    assert whole.sparse_features["f1"].to_dense()[2].tolist() == whole.ids[1, 2].tolist()
    with pytest.raises(InputError, match="must be a multiple of the ranks"):
        SMALL.batches(1, 5, 0, 3)


BYTES = [  # of two tables, D = 8, six ids, of which four are distinct in their table
    ("fp32", None, 6 * 32),
    ("fp16", None, 6 * 16),
    ("int8", None, 6 * 12),
    ("fp32", "SGD", 6 * 32 + 6 * 32 + 4 * 2 * 32),
    ("fp32", "row-wise Adagrad", 6 * 32 + 6 * 32 + 4 * 2 * (32 + 4)),
    ("fp16", "row-wise Adagrad", 6 * 16 + 6 * 32 + 4 * 2 * (16 + 4)),
]


@pytest.mark.parametrize(("precision", "optimizer", "expected"), BYTES)
def test_bytes_are_those_counted_by_hand(precision, optimizer, expected):
    batch = Batch(torch.tensor([[[0], [0], [1]], [[5], [0], [5]]]), torch.zeros(3, 2, 8))
    workload = Workload(tables="synthetic", num_tables=2, rows=6, embedding_dim=8, precision=precision)
    assert table_bytes(workload, [batch, batch], optimizer) == expected


def test_figures_of_a_row():
    workload = Workload(tables="synthetic", num_tables=2, rows=6, embedding_dim=8, batch_size=3)
    point = grid.Point("base", workload, 2, ("a", "b"))
    job = Job(workload, point.candidates, ("SGD",), copy_mib=64)
    copies = [0.01, 0.02, 0.02]
    seconds = {"a": [0.5, 0.5, 0.5], "b": [0.25, 0.125, 0.25], "copy": copies}
    found = {"measured": [{"direction": "training", "optimizer": "SGD", "seconds": seconds}], "bytes": {"SGD": 1e9}}
    a, b, copy = throughput_rows(point, job, found)
    assert (b["median"], b["p20"], b["ids_per_second"]) == (12, 12, 24)  # three samples in a quarter of a second
    assert (b["table_gb_per_second"], b["speed_to_baseline"], b["baseline"]) == (4, 2, "a")
    assert copy["median"] == pytest.approx(copied_bytes(64) / 0.02 / 1e9, abs=0.01)
    percents = sorted(100 * rate * s / copied_bytes(64) for rate, s in zip((4e9, 8e9, 4e9), copies, strict=True))
    assert b["percent_of_copy"] == pytest.approx(percents[1], abs=0.1)
    assert a["speed_to_baseline"] == 1


def _check(names, workload, optimizers):
    for optimizer in optimizers:
        for name in names:
            check.check(name, workload, optimizer, CPU)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_candidates_of_one_process_are_right(precision):
    workload = replace(SMALL, precision=precision)
    names = [name for name in (*grid.ON_ONE_RANK, *grid.QUANTISED) if naming.runs(name, workload, 1, CPU)]
    assert names
    in_ranks(_check, 1, "cpu", names, workload, program.OPTIMIZERS)


@pytest.mark.slow
def test_every_sharding_is_right_on_two_ranks():
    names = (*grid.SHARDED, *grid.REPLICATED, naming.ours("table_wise"))
    in_ranks(_check, 2, "cpu", names, replace(SMALL, tables="synthetic", num_tables=3), program.OPTIMIZERS)


class WrongStep:
    """Learns a little too fast."""

    def __init__(self, candidate):
        self.candidate = candidate
        self.pooled, self.shards = candidate.pooled, candidate.shards

    def train(self, batch):
        self.candidate.train(Batch(batch.ids, batch.gradient * 1.001))


class WrongFeatures(WrongStep):
    """Mixes features up."""

    def __init__(self, candidate):
        super().__init__(candidate)
        self.pooled, self.train = lambda batch: candidate.pooled(batch).flip(1), candidate.train


class NotANumber(WrongStep):
    """Fails a check that asks whether it is worse."""

    def __init__(self, candidate):
        super().__init__(candidate)
        self.pooled = lambda batch: candidate.pooled(batch) * float("nan")


def _check_wrong(wrong):
    def build(*arguments):
        return wrong(naming.build(*arguments))

    check.check(naming.TBE, SMALL, "SGD", CPU, build)


CAUGHT = [
    (WrongStep, "updated tables are off by .*e-"),
    (WrongFeatures, "pooled embeddings are off by"),
    (NotANumber, "pooled embeddings are off by inf"),
]


@pytest.mark.parametrize(("wrong", "sentence"), CAUGHT)
def test_a_wrong_candidate_is_caught(wrong, sentence):
    with pytest.raises(check.WrongCandidateError, match=f"TBE, SGD, 1 ranks: {sentence}"):
        in_ranks(_check_wrong, 1, "cpu", wrong)


def test_column_wise_trains_with_sgd_alone():
    fp32 = Workload()
    assert naming.trains("DMP column_wise", fp32, "SGD")
    assert not naming.trains("DMP column_wise", fp32, "row-wise Adagrad")
    assert naming.trains("DMP row_wise", fp32, "row-wise Adagrad")
    assert not naming.trains(naming.EBC, Workload(precision="fp16"), "SGD")


def test_the_default_grid_varies_every_axis():
    points = list(grid.default(Workload(), [1, 2, 4], CPU))
    assert {point.axis for point in points} == {"base", *grid.AXES, "sharding", "sharding of small tables"}
    assert {name for point in points for name in point.candidates} >= {*grid.SHARDED, *grid.REPLICATED, *grid.QUANTISED}
    assert not [name for point in points for name in point.candidates if "UVM" in name]
    on_gpu = next(iter(grid.default(Workload(), [1], torch.device("cuda")))).candidates
    assert {naming.TBE_CACHED, "DMP table_wise cached UVM"} <= {*on_gpu}


def test_what_is_asked_for_is_every_combination():
    axes = {"embedding_dim": [8, 16], "precision": ["fp32", "int8"]}
    points = list(grid.asked(Workload(), axes, [1, 2], [naming.TBE, "DMP row_wise"], CPU))
    found = [(p.workload.embedding_dim, p.workload.precision, p.ranks, p.candidates) for p in points]
    one = (naming.TBE, "DMP row_wise")
    assert found == [(width, "fp32", ranks, one[ranks - 1 :]) for width in (8, 16) for ranks in (1, 2)]


@pytest.mark.slow
def test_the_whole_program_small(tmp_path, monkeypatch, capsys):
    file = tmp_path / "results.csv"
    monkeypatch.setattr(record, "begin", lambda **_: dict.fromkeys(record.CIRCUMSTANCES, "x"))
    monkeypatch.setattr(sys, "argv", ["x", "--quick", "--results", str(file), "--repeats", "1"])
    program.main()
    rows = list(csv.DictReader(file.open()))
    kinds = {"throughput", "copy", "time of ours to DMP", "peak memory"}
    assert {row["measured"] for row in rows} == kinds
    measured = {
        (row["candidate"], row["direction"], row["optimizer"]) for row in rows if row["measured"] == "throughput"
    }
    assert {(naming.TBE, "training", "SGD"), (naming.QUANTISED_EBC, "forward", "")} <= measured
    assert all(float(row["median"]) > 0 for row in rows)
    printed = capsys.readouterr().out
    assert "fastest, 1 rank, SGD" in printed
    assert "one stacked table by hand" in printed


def test_a_mistake_is_told_before_anything_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(record, "begin", lambda **_: {})
    monkeypatch.setattr(sys, "argv", ["x", "--candidates", "TBF"])
    with pytest.raises(SystemExit) as exit_status:
        program.main()
    assert exit_status.value.code == 2
    assert capsys.readouterr().err.startswith("error: `candidates` (='TBF') must be of [")


def test_summary_says_where_torchrec_falls_short():
    point = grid.Point("base", Workload(), 1, (naming.TBE, naming.STACKED))
    job = Job(point.workload, point.candidates, ("SGD",))
    seconds = {naming.TBE: [1.0], naming.STACKED: [0.25], "copy": [1.0]}
    found = {"measured": [{"direction": "training", "optimizer": "SGD", "seconds": seconds}], "bytes": {"SGD": 1e9}}
    assert "SGD: TBE reaches 25 to 25 % of the speed of one stacked table by hand." in summary(
        throughput_rows(point, job, found)
    )
