"""Bytes and figures are those counted by hand, right candidates pass the check, and wrong ones stop the program."""

import argparse
import csv
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch

from benchmarks.embedding_throughput import __main__ as program
from benchmarks.embedding_throughput.candidates import CANDIDATES, runs
from benchmarks.embedding_throughput.measure import Job, check, in_ranks
from benchmarks.embedding_throughput.operators import TableBatched
from benchmarks.embedding_throughput.workload import ADAGRAD, CRITEO, STATES, Batch, Workload, draw_ids, table_bytes
from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs.environment import worker_environment

SMALL = Workload(embedding_dim=8, ids_a_bag=3)
OPTIMIZERS = ("", *STATES)


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    program.options(parser)
    return parser.parse_args(words)


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
def test_a_wrong_workload_raises(changes, sentence):
    with pytest.raises(InputError) as error:
        Workload(**changes)
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize("exponent", [0.0, 1.2])
def test_ids_follow_zipfs_law(exponent):
    rows, count = 50, 200_000
    ids = draw_ids(rows, (count,), exponent, torch.Generator().manual_seed(0))
    frequencies = ids.bincount(minlength=rows).double() / count
    weights = torch.arange(1, rows + 1).double() ** -exponent
    torch.testing.assert_close(frequencies.sort(descending=True).values, weights / weights.sum(), atol=3e-3, rtol=0)


def test_ranks_divide_one_batch():
    (whole,) = SMALL.batches(1, seed=5)
    parts = [SMALL.batches(1, 5, rank, 4)[0] for rank in range(4)]
    assert torch.equal(torch.cat([part.ids for part in parts], 1), whole.ids)
    assert torch.equal(torch.cat([part.gradient for part in parts]), whole.gradient)
    assert whole.sparse_features["f1"].to_dense()[2].tolist() == whole.ids[1, 2].tolist()
    with pytest.raises(InputError, match=r"`batch_size` \(=8192\) must be a multiple of the ranks \(=3\)"):
        list(program.jobs(Job(), arguments("--ranks", "3")))


BYTES = [  # of two tables, D = 8, six ids, of which four are distinct in their table
    ("fp32", "", 6 * 32),
    ("fp16", "", 6 * 16),
    ("int8", "", 6 * 12),
    ("fp32", "SGD", 6 * 32 + 6 * 32 + 4 * 2 * 32),
    ("fp32", ADAGRAD, 6 * 32 + 6 * 32 + 4 * 2 * (32 + 4)),
    ("fp16", ADAGRAD, 6 * 16 + 6 * 32 + 4 * 2 * (16 + 4)),
    ("fp32", "Adagrad", 6 * 32 + 6 * 32 + 4 * 2 * (32 + 32)),
    ("fp32", "Adam", 6 * 32 + 6 * 32 + 4 * 2 * (32 + 64)),
    ("fp32", "row-wise Adam", 6 * 32 + 6 * 32 + 4 * 2 * (32 + 36)),
]


@pytest.mark.parametrize(("precision", "optimizer", "expected"), BYTES)
def test_bytes_are_those_counted_by_hand(precision, optimizer, expected):
    batch = Batch(torch.tensor([[[0], [0], [1]], [[5], [0], [5]]]), torch.zeros(3, 2, 8))
    workload = Workload(tables="synthetic", num_tables=2, rows=6, embedding_dim=8, precision=precision)
    assert table_bytes(workload, [batch, batch], optimizer) == expected


def test_figures_of_a_row():
    workload = Workload(tables="synthetic", num_tables=2, rows=6, embedding_dim=8, batch_size=3)
    job, copied = Job(workload, ("a", "b"), ranks=2, optimizer="SGD", copy_mib=64), 2 * 64 * 2**20
    copies = [0.01, 0.02, 0.02]
    seconds = {"a": [0.5, 0.5, 0.5], "b": [0.25, 0.125, 0.25], "copy": copies}
    a, b, copy = program.throughput_rows(job, 1e9, seconds)
    assert (b["median"], b["p20"], b["ids_per_second"]) == (12, 12, 24)  # three samples in a quarter of a second
    assert (b["table_gb_per_second"], b["speed_to_baseline"], b["baseline"]) == (4, 2, "a")
    assert copy["median"] == pytest.approx(copied / 0.02 / 1e9, abs=0.01)
    percents = sorted(100 * rate * s / copied for rate, s in zip((4e9, 8e9, 4e9), copies, strict=True))
    assert b["percent_of_copy"] == pytest.approx(percents[1], abs=0.1)
    assert (a["speed_to_baseline"], a["direction"], a["optimizer"]) == (1, "training", "SGD")


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_candidates_of_one_process_are_right(precision):
    workload, checked = replace(SMALL, precision=precision), set()
    for optimizer in OPTIMIZERS:
        names = tuple(name for name in program.ONE_RANK if runs(name, workload, 1, "cpu", optimizer))
        assert in_ranks(check, Job(workload, names, optimizer=optimizer)) == ""
        checked.update(names)
    on_cpu = {name for name in program.ONE_RANK if "UVM" not in name and (precision == "fp32" or name[:4] != "our ")}
    assert checked == {name for name in on_cpu if ("quantised" in name) == (precision == "int8")}


@pytest.mark.slow
@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_sharding_is_right_on_two_ranks(optimizer):
    workload = replace(SMALL, tables="synthetic", num_tables=3)
    sharded = (*program.BARE, *program.REPLICATED, program.OURS)
    names = tuple(name for name in sharded if runs(name, workload, 2, "cpu", optimizer))
    assert in_ranks(check, Job(workload, names, ranks=2, optimizer=optimizer)) == ""


class WrongStep(TableBatched):
    """Learns a little too fast."""

    def train(self, batch):
        super().train(Batch(batch.ids, batch.gradient * 1.001))


class WrongFeatures(TableBatched):
    """Mixes features up."""

    def forward(self, batch):
        return super().forward(batch).view(batch.gradient.shape).flip(1).flatten(1)


class NotANumber(TableBatched):
    """Would pass a check that asks only whether a difference is too large."""

    def forward(self, batch):
        return super().forward(batch) * float("nan")


def check_with(wrong, job, device):
    CANDIDATES["TBE"] = wrong
    return check(job, device)


CAUGHT = [
    (WrongStep, "updated tables are off by "),
    (WrongFeatures, "pooled embeddings are off by "),
    (NotANumber, "pooled embeddings are off by inf "),
]


@pytest.mark.parametrize(("wrong", "sentence"), CAUGHT)
def test_a_wrong_candidate_is_caught(wrong, sentence):
    found = in_ranks(partial(check_with, wrong), Job(SMALL, ("TBE",), optimizer="SGD"))
    assert found.startswith(f"TBE, SGD, 1 ranks: {sentence}")


def test_column_wise_trains_with_sgd_alone():
    workload = Workload()
    assert runs("DMP column_wise", workload, 2, "cpu", "SGD")
    assert not runs("DMP column_wise", workload, 2, "cpu", ADAGRAD)
    assert runs("DMP row_wise", workload, 2, "cpu", ADAGRAD)
    assert not runs("DMP column_wise", workload, 2, "cuda", "row-wise Adam")
    assert not runs("EBC", replace(workload, precision="fp16"), 1, "cpu", "SGD")


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("optimizer", ["Adam", "row-wise Adam"])
def test_on_a_cpu_adam_on_the_rows_of_a_batch_is_ours(optimizer):
    on = {device: {n for n in CANDIDATES if runs(n, Workload(), 1, device, optimizer)} for device in ("cpu", "cuda")}
    assert {"our kernels", "ours table_wise", "ours row_wise"} <= on["cpu"]
    assert all(name.startswith("our") for name in on["cpu"])
    assert {"TBE", "DMP table_wise", "ours table_wise"} <= on["cuda"]
    assert not {"our kernels", "nn.EmbeddingBag", "ours data_parallel"} & on["cuda"]


@pytest.mark.usefixtures("kernel")
def test_by_default_every_axis_is_varied():
    jobs = list(program.jobs(Job(), arguments("--ranks", "1", "2", "4")))
    assert {job.axis for job in jobs} == {"base", *program.AXES, "sharding", "sharding of small tables", "rows"}
    assert {job.optimizer for job in jobs if job.axis == "base"} == {*OPTIMIZERS}
    assert {job.optimizer for job in jobs if job.axis == "width"} == {"", ADAGRAD, "SGD"}
    assert [(job.optimizer, job.workload.rows) for job in jobs if job.axis == "rows"] == [
        ("Adam", 10**5),
        ("Adam", 10**7),
    ]
    names = {name for job in jobs for name in job.candidates}
    assert names == {name for name in (*program.ONE_RANK, *program.BARE, *program.REPLICATED) if "UVM" not in name}
    on_gpu = next(program.jobs(Job(device="cuda"), arguments("--ranks", "1"))).candidates
    assert {"TBE cached UVM", "DMP table_wise cached UVM"} <= {*on_gpu}


def test_every_combination_of_what_is_asked_for_is_measured():
    axes = ("--embedding-dim", "8", "16", "--precision", "fp32", "int8")
    names = ("--candidates", "TBE", "DMP row_wise", "--optimizers", "SGD")
    jobs = program.jobs(Job(), arguments("--ranks", "1", "2", *axes, *names))
    found = [(job.workload.embedding_dim, job.ranks, job.optimizer, job.candidates) for job in jobs]
    able = {1: ("TBE", "DMP row_wise"), 2: ("DMP row_wise",)}
    assert found == [(d, ranks, o, able[ranks]) for d in (8, 16) for ranks in (1, 2) for o in ("", "SGD")]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the program in this process; returns the file of its results."""
    for name, value in worker_environment(1, processes=1).items():  # else it would replace this process
        monkeypatch.setenv(name, value)

    def run_program(*words):
        file = tmp_path / "results.csv"
        monkeypatch.setattr(sys, "argv", ["x", "--quick", "--results", str(file), *words])
        program.main()
        return file

    return run_program


@pytest.mark.slow
@pytest.mark.usefixtures("kernel")
@pytest.mark.verify
def test_the_whole_program_small(run, capsys):
    rows = list(csv.DictReader(run("--repeats", "1").open()))
    assert {row["measured"] for row in rows} == {"throughput", "copy", "time of ours to DMP", "peak memory"}
    found = {(row["candidate"], row["direction"], row["optimizer"], row["ranks"]) for row in rows}
    wanted = {("TBE", "training", "SGD", "1"), ("quantised EBC", "forward", "", "1")}
    wanted |= {("our kernels", "training", "Adagrad", "1"), ("ours table_wise", "training", "Adam", "1")}
    assert found >= wanted | {("ours data_parallel", "training", ADAGRAD, "2")}
    assert all(float(row["median"]) > 0 for row in rows)
    with (program.record.RESULTS / "embedding_throughput.csv").open() as committed:
        assert set(next(csv.reader(committed))) == {*rows[0], "rows"} - {"command"}  # "rows": of synthetic tables
    assert "ours at most 2 % slower than DMP: " in capsys.readouterr().out


def test_a_wrong_candidate_stops_the_program(run, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(program, "check", partial(check_with, WrongStep))
    with pytest.raises(SystemExit) as exit_status:
        run("--candidates", "TBE", "--ranks", "1")
    assert exit_status.value.code == 2
    assert capsys.readouterr().err.startswith("error: TBE, SGD, 1 ranks: updated tables are off by ")
    assert not list(tmp_path.iterdir())


MISTAKES = [
    (("--exponent", "-1"), "error: `exponent` (=-1.0) must be at least 0"),
    (("--candidates", "TBE cached UVM"), "error: no candidate runs"),
]


@pytest.mark.parametrize(("words", "sentence"), MISTAKES)
def test_a_mistake_is_reported_before_anything_is_measured(run, capsys, words, sentence):
    with pytest.raises(SystemExit) as exit_status:
        run(*words)
    assert exit_status.value.code == 2
    assert capsys.readouterr().err.startswith(sentence)
