"""How fast are tables looked up and updated, and what share of the memory's bandwidth is that?

    python -m benchmarks.embedding_throughput                  # ten minutes on two quiet cores, under 10 GiB
    python -m benchmarks.embedding_throughput --embedding-dim 16 64 --exponent 0 1.2 --ranks 1 2

Tables are Criteo's 26 and Ali-CCP's 18, both cut to `--max-rows` rows a table so that they fit, or synthetic ones.
Candidates are `nn.EmbeddingBag`, one a table; an unsharded `EmbeddingBagCollection` (EBC); fbgemm's operator (TBE) by
itself; `DistributedModelParallel` (DMP) by TorchRec alone and by `distribute` ("ours"), under every sharding type; all
tables in one and updated by hand ("stacked by hand"), a yardstick; for int8 the quantised EBC and
TBE; on CUDA tables in host memory with a cache (cached UVM). "forward" is without gradients; "training" is forward,
backward and update. Row-wise Adagrad and SGD are apart: only like is compared with like. Column-wise types train with
SGD alone, since with row-wise Adagrad they keep more state and so learn something else.

First each candidate's embeddings and, after three updates, tables are held to float64 arithmetic on small tables; there
are no figures if one is off. Then candidates take turns; on several ranks a batch is divided among them, and time runs
until all have done. A row of ``benchmarks/results/embedding_throughput.csv`` is a measurement, and says which:

- throughput: samples a second, and ids a second. GB of tables a second counts what a batch must move: forward, a row
  for each id; an update, moreover, a row of the fp32 gradient for each id, and for each distinct row its reading and
  writing, with the optimizer's state (row-wise Adagrad's is 4 bytes). An int8 row has 4 more bytes, its scale and
  offset. Percent of copy is of the bytes that copying `--copy-mib` MiB reads and writes in the same turns, on as many
  ranks and threads; more than 100 is possible where frequent rows stay in the cache. Speed to baseline is the median
  over turns of how many times as fast as the baseline the candidate is.
- copy: that copy.
- time of ours to DMP: ratio of a training step's times with the same plan, one for each pair of turns, over several
  runs with new processes. It is to be within 2 % of 1.
- peak memory: of a process that does nothing but train one candidate, libraries included; on a GPU, of its memory.

Not yet run on a GPU.
"""

import argparse
import sys
from dataclasses import fields
from itertools import product

import torch

from benchmarks import record
from benchmarks.embedding_throughput import grid, naming
from benchmarks.embedding_throughput.check import WrongCandidateError
from benchmarks.embedding_throughput.measure import Job
from benchmarks.embedding_throughput.results import Run
from benchmarks.embedding_throughput.summary import summary
from benchmarks.embedding_throughput.workload import Workload
from torchrec_mtl.errors import InputError

AXES = list(fields(Workload))
OPTIMIZERS = ("row-wise Adagrad", "SGD")
QUICK = Workload(max_rows=1000, rows=1000, embedding_dim=16, batch_size=128)


def options(parser: argparse.ArgumentParser) -> None:
    """Of one axis or several values; any given, all combinations are measured, and neither pairs nor memory."""
    for field in AXES:
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, nargs="+", help=f"{field.default}")
    parser.add_argument("--ranks", type=int, nargs="+", help="processes; 1 2 4, or those there are GPUs for")
    parser.add_argument("--candidates", nargs="+", help=f"of {', '.join(naming.NAMES)}")
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS, default=OPTIMIZERS)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of a rank")
    parser.add_argument("--copy-mib", type=int, help="far more than the caches; 512, on CUDA 4096")
    parser.add_argument("--pair-runs", type=int, help="new processes for ours beside DMP; 6")


def points(arguments: argparse.Namespace) -> list[grid.Point]:
    """What is to be measured.

    Raises:
        InputError: if a value is out of its range.
    """
    device = torch.device(arguments.device)
    base = QUICK if arguments.quick else Workload()
    axes = {field.name: getattr(arguments, field.name) for field in AXES if getattr(arguments, field.name)}
    for name in arguments.candidates or []:
        if name not in naming.NAMES:
            raise InputError(f"`candidates` (={name!r}) must be of {list(naming.NAMES)}")
    if axes or arguments.candidates:
        return list(grid.asked(base, axes, arguments.ranks, arguments.candidates or (), device))
    return list(grid.quick(base, device) if arguments.quick else grid.default(base, arguments.ranks, device))


def main() -> None:
    arguments = record.parse("embedding_throughput", __doc__, options)
    circumstances = record.begin(threads=arguments.threads, device=arguments.device)
    on_gpu, quick = arguments.device == "cuda", arguments.quick
    arguments.ranks = arguments.ranks or [n for n in (1, 2, 4) if not on_gpu or n <= torch.cuda.device_count()]
    try:
        asked = points(arguments)
        job = Job(
            asked[0].workload,
            asked[0].candidates,
            tuple(arguments.optimizers),
            repeats=arguments.repeats or (2 if quick else 5),
            device=arguments.device,
            threads=arguments.threads,
            copy_mib=arguments.copy_mib or (16 if quick else 4096 if on_gpu else 512),
            block_ms=1.0 if quick else 60.0,
        )
        run = Run(job, pair_runs=arguments.pair_runs or (1 if quick else 6), pairs_a_run=2 if quick else 24)
        for point in asked:
            run.throughput(point)
        if all(point.axis != "asked for" for point in asked):
            base = asked[0]
            ratios = list(product([n for n in arguments.ranks if n <= 2], job.optimizers))
            for ranks, optimizer in ratios[:1] if quick else ratios:
                run.pairs(base, ranks, naming.bare("table_wise"), naming.ours("table_wise"), optimizer)
            for candidate in base.candidates[:1] if quick else base.candidates:
                run.peak_memory(base, candidate)
    except (InputError, WrongCandidateError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    record.write(arguments.results, run.rows, circumstances)
    print(summary(run.rows))


if __name__ == "__main__":
    main()
