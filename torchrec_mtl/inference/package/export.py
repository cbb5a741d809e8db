"""Makes a package of a trained model, and refuses to if it does not score as the model does."""

import copy
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from torchrec_mtl.argument_types import checked
from torchrec_mtl.data import MultiTaskBatch
from torchrec_mtl.errors import InputError, TrainingError, check_choice
from torchrec_mtl.files import build_folder
from torchrec_mtl.inference.calibration import Calibration
from torchrec_mtl.inference.package import candidates
from torchrec_mtl.inference.package.candidates import CandidatesGraph
from torchrec_mtl.inference.package.graph import InferenceGraph, example
from torchrec_mtl.inference.package.load import Arguments, Package, arguments_of, load_package
from torchrec_mtl.inference.package.manifest import (
    CANDIDATES_FILE,
    GOLDEN_FILE,
    KERNELS_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    PROCESSORS,
    Manifest,
    rows_file,
    this_processor,
)
from torchrec_mtl.inference.package.tables import TABLE_TYPES
from torchrec_mtl.inference.values import largest_difference
from torchrec_mtl.ops import library
from torchrec_mtl.ops.build import build
from torchrec_mtl.tasks import TaskForest

TOLERANCE = 1e-5  # of a package's scores to those of its graph, which has the same rows
_ROWS = 37  # of the batch that is traced: equal to no size of a model
_VECTORS = {"x86-64-v3": 256, "x86-64-v4": 512}  # bits


@checked
def export_package(
    model: nn.Module,
    tasks: TaskForest,
    output: str | Path,
    golden: MultiTaskBatch,
    *,
    table_type: str = "fp32",
    unknown_rows: Mapping[str, int] | None = None,
    calibration: Calibration | None = None,
    march: str = "",
    user_keys: Sequence[str] = (),
    beside: tuple[Path, ...] = (),
    accept: Callable[[Package], None] = lambda package: None,
) -> Path:
    """Compiles a trained model into a package, checks it, and returns its folder.

    The folder appears when it is whole. It has the compiled graph, the rows of the tables, which are mapped from files
    and can be exchanged without compiling, the attention kernels if the model uses them, a manifest with every file's
    hash, and a golden batch with its scores.

    Args:
        model: trained model with a `FeatureArch`, not sharded, on the CPU.
        tasks: the ``T`` tasks.
        output: folder of the package, which must not exist.
        golden: rows that are stored with their scores, and scored again whenever the package is loaded.
        table_type: type of the tables' rows: "fp32", "fp16", "int8" or "int4".
        unknown_rows: row for ids that a table does not have, by key; ids of other keys are refused.
        calibration: calibration of the probabilities, if there is one.
        march: processors that the package is for, "x86-64-v3" or "x86-64-v4"; by default this machine's.
        user_keys: keys of a user's ids, to score the candidates of one user with `Package.predict_candidates`: then
            these are looked up once, and layers that read all fields multiply them once.
        beside: further files to keep in the package, such as a schema and encoders.
        accept: function called with the finished package before the folder appears; if it raises, there is none.

    Raises:
        InputError: if an argument is wrong, ``output`` exists, the model's features cannot be exported, or the
            attention kernels are not built.
        TrainingError: if the compiled graph does not score the golden batch as the model with the same rows does.
    """
    folder, march = Path(output), march or this_processor()
    check_choice("table_type", table_type, list(TABLE_TYPES))
    check_choice("march", march, list(PROCESSORS))
    if folder.exists():
        raise InputError(f"`output` (={str(output)!r}) must not exist")
    graph = InferenceGraph(copy.copy(model), tasks, table_type, dict(unknown_rows or {}), calibration).eval()
    of_candidates = CandidatesGraph(graph, user_keys).eval() if user_keys else None
    for key, row in (unknown_rows or {}).items():
        if key not in graph.keys or not 0 <= row < graph.sizes[graph.keys.index(key)]:
            raise InputError(f"`unknown_rows` (={unknown_rows}) must have a row of its table for a key of {graph.keys}")

    def write(partial: Path) -> None:
        _compile(graph, example(graph, _ROWS), _shapes(graph), partial / MODEL_FILE, march)
        if of_candidates is not None:
            given = candidates.example(of_candidates, _ROWS)
            _compile(of_candidates, given, _candidate_shapes(graph), partial / CANDIDATES_FILE, march)
        for number, rows in enumerate(graph.rows):
            np.save(partial / rows_file(number), rows.numpy())
        for file in beside:
            shutil.copyfile(file, partial / file.name)
        rows_of = arguments_of(golden, graph.keys, graph.is_weighted)
        golden_batch: dict[str, Any] = {"scores": _scores(graph, rows_of).numpy(), **rows_of.arrays()}
        np.savez(partial / GOLDEN_FILE, **golden_batch)
        _manifest(graph, table_type, unknown_rows, calibration, march, user_keys).save(partial)
        package = load_package(partial)  # scores the golden batch
        for size in (1, 2 * _ROWS):
            _check(graph, package, size)
            if of_candidates is not None:
                _check_candidates(of_candidates, package, size)
        accept(package)

    build_folder(folder, (folder / MANIFEST_FILE).is_file, write)
    return folder


@torch.no_grad()
def _compile(graph: nn.Module, given: tuple[Any, ...], shapes: tuple[Any, ...], file: Path, march: str) -> None:
    import torch._inductor

    with library.carried():
        program = torch.export.export(graph, given, dynamic_shapes=shapes, strict=False)
    if any(str(node.target).startswith("torchrec_mtl.") for node in program.graph.nodes):
        shutil.copyfile(build(march), file.with_name(KERNELS_FILE))
    with _compiled_for(march):
        torch._inductor.aoti_compile_and_package(program, package_path=str(file))


@contextmanager
def _compiled_for(march: str) -> Iterator[None]:
    """Within it, inductor compiles for these processors, and not for the one at hand."""
    from torch._inductor import config, cpp_builder

    if hasattr(config.cpp, "march"):
        with config.patch({"cpp.march": march, "cpp.simdlen": _VECTORS[march]}):
            yield
        return
    found = cpp_builder._get_optimization_cflags  # torch 2.11 has no setting

    def flags(*args: Any, **kwargs: Any) -> tuple[list[str], list[str]]:
        of_compiler, of_linker = found(*args, **kwargs)
        return [f"march={march}" if flag == "march=native" else flag for flag in of_compiler], of_linker

    cpp_builder._get_optimization_cflags = flags
    try:
        with config.patch({"cpp.simdlen": _VECTORS[march]}):
            yield
    finally:
        cpp_builder._get_optimization_cflags = found


def _shapes(graph: InferenceGraph) -> tuple[Any, ...]:
    """What may vary in the arguments of a graph."""
    batch, num_values = Dim("batch", min=1, max=2**20), Dim("num_values", min=0, max=2**31)
    of_rows = [{0: Dim(f"bytes_{number}", min=1, max=2**40)} for number in range(len(graph.rows))]
    return {0: batch}, {0: num_values}, {1: batch}, {0: num_values} if graph.is_weighted else None, of_rows


def _candidate_shapes(graph: InferenceGraph) -> tuple[Any, ...]:
    num_values = {0: Dim("num_user_values", min=0, max=2**31)}
    return num_values, None, num_values if graph.is_weighted else None, *_shapes(graph)


@torch.no_grad()
def _scores(graph: InferenceGraph, given: Arguments) -> Tensor:
    scores: Tensor = graph(given.dense_features, given.values, given.lengths, given.weights, graph.rows)
    return scores


def _check(graph: InferenceGraph, package: Package, num_rows: int) -> None:
    given = Arguments(*example(graph, num_rows)[:4])
    difference = largest_difference(package.run(given), _scores(graph, given), graph.tasks)
    if not difference <= TOLERANCE:
        raise TrainingError(f"the package's scores of {num_rows} rows differ from the model's by {difference:.2g}")


@torch.no_grad()
def _check_candidates(graph: CandidatesGraph, package: Package, num_candidates: int) -> None:
    given = candidates.example(graph, num_candidates)
    user, rows = Arguments(torch.empty(1, 0), *given[:3]), Arguments(*given[3:7])
    difference = largest_difference(package.run_candidates(user, rows), graph(*given), graph.of_rows.tasks)
    if not difference <= TOLERANCE:
        raise TrainingError(
            f"the package's scores of {num_candidates} candidates differ from the model's by {difference:.2g}"
        )


def _manifest(
    graph: InferenceGraph,
    table_type: str,
    unknown_rows: Mapping[str, int] | None,
    calibration: Calibration | None,
    march: str,
    user_keys: Sequence[str],
) -> Manifest:
    return Manifest(
        graph.tasks,
        tuple(graph.keys),
        tuple(graph.sizes.tolist()),
        dict(unknown_rows or {}),
        graph.num_dense,
        graph.is_weighted,
        table_type,
        calibration is not None,
        march,
        torch.__version__,
        len(graph.rows),
        TOLERANCE,
        tuple(user_keys),
    )
