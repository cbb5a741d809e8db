"""Times one batch through every way to score: ``python -m benchmarks.scoring``.

Ways are the model in Python with tables in fp32 and in INT8, TorchRec's route (INT8, traced, TorchScript), a package of
this library's with fp32 and INT8 tables, and the same package called from C++; beside them TorchRec's DLRM with equal
tables, and torch-rechub's models in Python and through its ONNX export, in an environment of their own. All have the
fields and sizes of ``benchmarks.peers``; ours and DLRM have eight dense columns too, which the service of torch-rechub
does without. The ways take turns, on one thread. What is compared must score alike before it is timed.

``rows / s`` is from the median of the calls, with the same of each round as spread; ``p99`` is of all calls, of which
``calls`` says how many. ``to_base`` is the median over rounds of the ratio of times to the same model in Python, fp32,
above 1 where this way is faster. A package can also score the candidates of one user, to whom half of the fields
belong; there, the base is the same package with the user's ids repeated in every row. It takes half an hour, most of
it compiling.
"""

import argparse
import copy
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from subprocess import PIPE, Popen

import fbgemm_gpu
import numpy as np
import torch
from torch import Tensor, nn
from torchrec import EmbeddingBagCollection, KeyedJaggedTensor
from torchrec.fx import symbolic_trace
from torchrec.inference.modules import quantize_inference_model
from torchrec.models.dlrm import DLRM

from benchmarks import record
from benchmarks.peers.common import WORKLOADS, Workload
from benchmarks.peers.torchrec_mtl_models import model_args
from tests.peers.environment import python_with
from torchrec_mtl import TaskChain
from torchrec_mtl.data import Field, MultiTaskBatch, Schema
from torchrec_mtl.inference.package import Package, export_package, load_package
from torchrec_mtl.inference.package.load import Arguments
from torchrec_mtl.modules import DynamicSelector, FeatureArch
from torchrec_mtl.systems import SYSTEMS

NUM_DENSE, DENSE_SIZES = 8, (64, 16)
MODELS, BATCHES = ("shared_bottom", "mmoe", "bpcm", "tafe", "dlrm"), (1, 64, 1024, 8192)
CANDIDATES = (100, 1000)
STEPS = 50_000  # after which the schedule of TAFE's selector is at its end
TURN = 0.3  # seconds
ONNX = ("onnx", "onnxruntime", "onnxscript")
EAGER, ROWS, ONE_USER = "Python, fp32", "package, rows", "package, one user"
TOLERANCE = {"fp32": 1e-5, "int8": 2e-2}  # of scores; in INT8 a point of TAFE near its threshold may change sides

Turn = Callable[[int, int], list[float]]


def tensors(work: Workload, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Dense columns, ids and lengths: those of ``time_package.cpp``."""
    sizes = list(work.fields.values())
    ids = [(torch.arange(batch) * 7919 + key * 104729) % size for key, size in enumerate(sizes)]
    return torch.zeros(batch, NUM_DENSE), torch.cat(ids), torch.ones(len(sizes), batch, dtype=torch.int64)


def keyed(work: Workload, ids: Tensor, lengths: Tensor) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(list(work.fields), ids, lengths=lengths.flatten())


def build(name: str, work: Workload) -> nn.Module:
    fields, tasks = [Field(*field) for field in work.fields.items()], TaskChain(work.tasks)
    tables = EmbeddingBagCollection(tables=Schema("s", fields, tasks).embedding_configs(work.embedding_dim))
    if name == "dlrm":
        over = [*work.expert_sizes, *work.tower_sizes, 1]
        return DLRM(tables, NUM_DENSE, [*DENSE_SIZES[:-1], work.embedding_dim], over).eval()
    features = FeatureArch(tables, dense_in_features=NUM_DENSE, dense_arch_layer_sizes=(*DENSE_SIZES,))
    args = {"embedding_dim": work.embedding_dim} if name in ("tafe", "bpcm") else model_args(name, work)
    model = SYSTEMS[name].model(features, tasks, **args).eval()
    for selector in (each for each in model.modules() if isinstance(each, DynamicSelector)):
        selector.step.fill_(STEPS)  # as in a trained model: about half of the points are selected
    return model


def in_python(run: Callable[[Tensor, Tensor, Tensor], Tensor], work: Workload) -> Turn:
    def turn(batch: int, calls: int) -> list[float]:
        given = tensors(work, batch)
        return [record.seconds(lambda: run(*given)) for _ in range(calls)]

    return turn


class Process:
    """A program that answers a line with a batch size and a number of calls with a line of numbers."""

    def __init__(self, *command: str | Path) -> None:
        self._process = Popen([*map(str, command)], cwd=record.ROOT, text=True, stdin=PIPE, stdout=PIPE)

    def answer(self) -> list[float]:
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"error: {self._process.args[0]} ended with status {self._process.wait()}")
        return [float(number) for number in line.split()]

    def ask(self, batch: int, calls: int) -> list[float]:
        print(batch, calls, file=self._process.stdin, flush=True)
        return self.answer()


def compiled_timer(folder: Path) -> Path:
    """Compiles ``time_package.cpp``."""
    pytorch, program = Path(torch.__file__).parent, folder / "time_package"
    include = [f"-I{pytorch / 'include'}", f"-I{pytorch / 'include/torch/csrc/api/include'}"]
    library = [f"-L{pytorch / 'lib'}", f"-Wl,-rpath,{pytorch / 'lib'}", "-Wl,--no-as-needed"]
    source = Path(__file__).with_name("time_package.cpp")
    command = ["c++", "-std=c++20", "-O2", *include, str(source), *library]
    subprocess.run([*command, *("-ltorch", "-ltorch_cpu", "-lc10", "-ldl"), "-o", str(program)], check=True)
    return program


def user_keys(work: Workload) -> list[str]:
    """Those of the first half of the fields."""
    return list(work.fields)[: len(work.fields) // 2]


def packaged(model: nn.Module, work: Workload, table_type: str, folder: Path) -> Path:
    dense, ids, lengths = tensors(work, 64)
    golden = MultiTaskBatch(dense, keyed(work, ids, lengths), torch.zeros(64, len(work.tasks)))
    keys = user_keys(work) if table_type == "fp32" else ()
    return export_package(model, TaskChain(work.tasks), folder, golden, table_type=table_type, user_keys=keys)


def size(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.iterdir()) / 2**20


def check_alike(work: Workload, one: Callable[..., Tensor], other: Callable[..., Tensor], tolerance: float) -> None:
    for batch in (1, 64):
        difference = float((one(*tensors(work, batch)) - other(*tensors(work, batch))).abs().max())
        if not difference <= tolerance:
            sys.exit(f"error: two ways that should score alike differ by {difference:.2g}")


def ways(
    name: str, work: Workload, folder: Path, timer: Path, table_types: Sequence[str]
) -> tuple[dict[str, Turn], dict[str, float]]:
    """Every way of one model, which score alike; and the MiB of those that are files."""
    model, sizes = build(name, work), dict[str, float]()
    quantised = quantize_inference_model(copy.deepcopy(model))
    traced = symbolic_trace(copy.deepcopy(quantised), leaf_modules=["IntNBitTableBatchedEmbeddingBagsCodegen"])
    scripted = torch.jit.script(traced)

    def scoring(module: Callable[..., Tensor]) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        return lambda dense, ids, lengths: module(dense, keyed(work, ids, lengths)).sigmoid()

    functions = {EAGER: scoring(model), "Python, INT8": scoring(quantised), "TorchScript, INT8": scoring(scripted)}
    check_alike(work, functions[EAGER], functions["Python, INT8"], TOLERANCE["int8"])
    check_alike(work, functions["Python, INT8"], functions["TorchScript, INT8"], TOLERANCE["fp32"])
    processes = {}
    for table_type in table_types if name != "dlrm" else ():
        way = f"package, {table_type.upper() if table_type == 'int8' else table_type}"
        package = load_package(packaged(model, work, table_type, folder / f"{name}_{table_type}"))
        sizes[way] = size(package.folder)
        functions[way] = lambda *given, package=package: package.run(Arguments(*given))
        check_alike(
            work, functions[EAGER if table_type == "fp32" else "Python, INT8"], functions[way], TOLERANCE["fp32"]
        )
        operators = Path(fbgemm_gpu.__file__).parent / "fbgemm_gpu_tbe_inference.so"
        process = Process(timer, package.folder, operators, str(NUM_DENSE), *map(str, work.fields.values()))
        difference = abs(process.ask(64, 0)[0] - float(functions[way](*tensors(work, 64)).double().mean()))
        if not difference <= TOLERANCE["fp32"]:
            sys.exit(f"error: the mean score in C++ differs from Python's by {difference:.2g}")
        processes[f"C++, {way}"] = lambda batch, calls, process=process: process.ask(batch, calls)[1:]
    return {**{way: in_python(function, work) for way, function in functions.items()}, **processes}, sizes


def of_one_user(work: Workload, package: Package) -> dict[str, Turn]:
    """Candidates of one user, as rows that repeat the user's ids and as candidates, which score alike."""
    num_user = len(user_keys(work))

    def split(batch: int) -> tuple[Arguments, Arguments, Arguments]:
        dense, ids, lengths = tensors(work, batch)
        by_key = ids.view(len(lengths), batch)
        by_key[:num_user] = by_key[:num_user, :1]
        user = Arguments(torch.empty(1, 0), by_key[:num_user, 0].clone(), lengths[:num_user, :1])
        candidates = Arguments(dense, by_key[num_user:].flatten(), lengths[num_user:])
        return Arguments(dense, by_key.flatten(), lengths), user, candidates

    rows, *parts = split(CANDIDATES[0])
    difference = float((package.run(rows) - package.run_candidates(*parts)).abs().max())
    if not difference <= TOLERANCE["fp32"]:
        sys.exit(f"error: scores of candidates differ by {difference:.2g} from those of rows")

    def turn(batch: int, calls: int, once: bool) -> list[float]:
        rows, *parts = split(batch)
        function = (lambda: package.run_candidates(*parts)) if once else (lambda: package.run(rows))
        return [record.seconds(function) for _ in range(calls)]

    return {ROWS: partial(turn, once=False), ONE_USER: partial(turn, once=True)}


def rechub(name: str, folder: Path) -> tuple[dict[str, Turn], dict[str, float]]:
    """The same of torch-rechub."""
    python = python_with("torch_rechub", ONNX)
    command = ("-W", "ignore", "-m", "benchmarks.scoring.onnx_worker", name, folder / f"{name}.onnx")
    process = Process(python, *command)
    sizes = {"ONNX": process.answer()[0]}
    turns = {
        EAGER: lambda batch, calls: process.ask(batch, calls)[:calls],
        "ONNX": lambda batch, calls: process.ask(batch, calls)[calls:],
    }
    return turns, sizes


def measured(about: record.Row, turns: dict[str, Turn], batch: int, repeats: int, base_way: str) -> list[record.Row]:
    calls = {way: max(1, min(1000, int(TURN / statistics.median(turn(batch, 3))))) for way, turn in turns.items()}
    times: dict[str, list[list[float]]] = {way: [] for way in turns}
    for _ in range(repeats):
        for way, turn in turns.items():
            times[way].append(turn(batch, calls[way]))
    rows = []
    base = [statistics.median(of_round) for of_round in times[base_way]]
    for way, rounds in times.items():
        medians = [statistics.median(of_round) for of_round in rounds]
        pooled = np.concatenate(rounds)
        row = {**about, "way": way, "batch_size": batch, "calls": len(pooled)}
        row |= {"to_base": round(record.ratio(base, medians), 3)}
        rows.append({**row, "measure": "rate", **record.spread([batch / m for m in medians], "rows / s", 0)})
        p99 = [float(np.quantile(of_round, 0.99)) * 1e6 for of_round in rounds]
        rows.append({**row, "measure": "p99", **record.spread(p99, "us", 0)})
    return rows


def only(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", default=[], metavar="LIBRARY/MODEL", help="some of the models (all)")


@torch.no_grad()
def main() -> None:
    arguments = record.parse("scoring", __doc__, only)
    work = WORKLOADS["quick" if arguments.quick else "speed"]
    repeats = arguments.repeats or (2 if arguments.quick else 7)
    models, batches = (MODELS[:1], BATCHES[:2]) if arguments.quick else (MODELS, BATCHES)
    table_types = ("fp32",) if arguments.quick else ("fp32", "int8")  # each is compiled for half a minute
    with record.Results(arguments.results) as results, tempfile.TemporaryDirectory() as temporary:
        timer = compiled_timer(Path(temporary))
        cases = [("torchrec" if name == "dlrm" else "torchrec_mtl", name, ways) for name in models]
        cases += [] if arguments.quick else [("torch_rechub", name, rechub) for name in ("shared_bottom", "mmoe")]
        for library, name, make in cases:
            if arguments.only and f"{library}/{name}" not in arguments.only:
                continue
            folder = Path(temporary) / library
            folder.mkdir(exist_ok=True)
            turns, sizes = make(name, work, folder, timer, table_types) if make is ways else make(name, folder)
            about = {"library": library, "model": name}
            for way, mib in sizes.items():
                results.add({**about, "way": way, "measure": "size", **record.spread([mib], "MiB", 1)})
            for batch in batches:
                rows = measured(about, turns, batch, repeats, EAGER)
                results.add(*rows)
                rates = {row["way"]: (int(row["median"]), row["to_base"]) for row in rows if row["measure"] == "rate"}
                print(library, name, batch, rates, flush=True)
            for batch in CANDIDATES if library == "torchrec_mtl" else ():
                package = load_package(folder / f"{name}_fp32")
                results.add(*measured(about, of_one_user(work, package), batch, repeats, ROWS))
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
