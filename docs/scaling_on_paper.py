"""What 8, 64 and 512 GPUs would do with a terabyte of tables: ``python docs/scaling_on_paper.py``.

Nothing of this is run on a GPU. TorchRec's planner places the tables of a model without memory as it does for training,
and its cost model and the FLOPs of the model's dense part give the time of a step. Every assumption is an argument.
Writes ``scaling_on_paper.csv`` and ``scaling.png``, and prints the table of ``scaling.md``. Two minutes on one core.
"""

import argparse
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch
import torchrec
from matplotlib.figure import Figure
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, types
from torchrec.distributed.planner.proposers import GreedyProposer, UniformProposer
from torchrec.distributed.planner.stats import NoopEmbeddingStats
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.modules.embedding_configs import DataType
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad

from torchrec_mtl import MultiTaskTrain, TaskChain
from torchrec_mtl.data import MultiTaskBatch
from torchrec_mtl.losses import CrossEntropyLoss
from torchrec_mtl.models import PLE
from torchrec_mtl.modules import FeatureArch
from torchrec_mtl.training.config import SHARDINGS
from torchrec_mtl.training.sharded_tables import TableSharder
from torchrec_mtl.training.table_constraints import REPLICATED

NAME = "scaling_on_paper.csv"
TASKS = TaskChain(["click", "cart", "purchase"])
TABLES = "model.features.embedding_bag_collection"
TERMS = {  # of a step, with their names and colours in the chart
    "lookup_ms": ("lookup", "#4c78a8"),
    "all_to_all_ms": ("exchange of embeddings", "#f58518"),
    "dense_ms": ("matrix products", "#54a24b"),
    "all_reduce_ms": ("all-reduce beyond the backward pass", "#b279a2"),
    "agreement_ms": ("agreement of the ranks", "#9d9d9d"),
}


@dataclass(frozen=True)
class Workload:
    """A model to train: PLE on a funnel of three tasks, above tables of power-law sizes with one feature each."""

    table_bytes: float = 1e12  # all tables, in fp32
    num_tables: int = 26
    exponent: float = 1.5  # the k-th largest table has k ** -exponent as many rows as the largest
    embedding_dim: int = 128
    ids_a_feature: float = 1.0  # mean length of a bag
    num_dense: int = 13  # dense features
    batch_size: int = 4096  # rows of a step on each GPU
    expert_layer_sizes: tuple[int, ...] = (1024, 512)  # two experts for each task and two shared ones, in two layers

    def table_rows(self) -> list[int]:
        """Rows of each table, the largest first."""
        sizes = [k**-self.exponent for k in range(1, self.num_tables + 1)]
        rows = self.table_bytes / (4 * self.embedding_dim)
        return [max(1, round(rows * size / sum(sizes))) for size in sizes]

    def build(self, table_rows: Sequence[int], data_type: DataType, device: str) -> nn.Module:
        """The model with its loss; its tables lie on ``device``."""
        kind = {"embedding_dim": self.embedding_dim, "data_type": data_type}
        tables = [
            EmbeddingBagConfig(name=f"t{k}", num_embeddings=rows, feature_names=[f"f{k}"], **kind)
            for k, rows in enumerate(table_rows)
        ]
        ebc = EmbeddingBagCollection(tables=tables, device=torch.device(device))
        dense = [512, self.embedding_dim]
        features = FeatureArch(ebc, dense_in_features=self.num_dense, dense_arch_layer_sizes=dense)
        ple = PLE(features, TASKS, expert_layer_sizes=list(self.expert_layer_sizes))
        return MultiTaskTrain(ple, CrossEntropyLoss(TASKS))


@cache
def dense_cost(workload: Workload, rows: int = 8) -> tuple[float, int]:
    """FLOPs of a row's forward and backward pass, counted as it runs, and number of parameters; without tables."""
    model = workload.build([1] * workload.num_tables, DataType.FP32, "cpu")
    keys = [f"f{k}" for k in range(workload.num_tables)]
    ids = torch.zeros(rows * len(keys), dtype=torch.long)
    sparse = KeyedJaggedTensor.from_lengths_sync(keys, ids, torch.ones(len(ids), dtype=torch.int32))
    batch = MultiTaskBatch(torch.zeros(rows, workload.num_dense), sparse, torch.zeros(rows, len(TASKS)))
    with FlopCounterMode(display=False) as counter:
        model(batch)[0].backward()
    of_tables = sum(p.numel() for p in model.get_submodule(TABLES).parameters())
    return counter.get_total_flops() / rows, sum(p.numel() for p in model.parameters()) - of_tables


@dataclass(frozen=True)
class Cluster:
    """GPUs as the cost model sees them; bandwidths are those of one GPU, in one direction, in GB/s."""

    num_gpus: int
    gpus_a_node: int = 8  # joined by NVLink; each has a network card of its own
    hbm_gb: float = 80.0
    host_memory_gb: float = 250.0  # one GPU's part of a node's memory
    hbm_bandwidth: float = 3350.0
    pcie_bandwidth: float = 64.0  # between GPU and host memory
    nvlink_bandwidth: float = 450.0
    network_bandwidth: float = 50.0
    bandwidth_share: float = 0.8  # of each bandwidth, as it is reached
    peak_tflops: float = 989.0
    peak_share: float = 0.4  # of the peak, as matrix products reach it
    message_us: float = 10.0  # a small message between two GPUs, as a collective sends it
    wait_us: float = 50.0  # a GPU without work, while the host reads the ranks' decision and starts the tables' kernels

    def bytes_a_ms(self, bandwidth: float) -> float:
        """What is reached of a bandwidth."""
        return self.bandwidth_share * bandwidth * 1e6

    def agreement_ms(self) -> float:
        """Three numbers up a tree of all GPUs and down again, and the host's answer to them."""
        return (2 * math.ceil(math.log2(self.num_gpus)) * self.message_us + self.wait_us) / 1000

    def topology(self) -> types.Topology:
        """The cluster for TorchRec's planner."""
        hardware = types.HardwareConfig(
            hbm_cap_bytes=int(self.hbm_gb * 1e9),
            ddr_cap_bytes=int(self.host_memory_gb * 1e9),
            intra_host_bw=self.bytes_a_ms(self.nvlink_bandwidth),
            inter_host_bw=self.bytes_a_ms(self.network_bandwidth),
            hbm_mem_bw=self.bytes_a_ms(self.hbm_bandwidth),
            hbm_to_ddr_mem_bw=self.bytes_a_ms(self.pcie_bandwidth),
        )
        # without the flag TorchRec silently takes figures of its own for all bandwidths
        kernel = types.KernelConfig(compute_device="cuda", use_hardware_based_bandwidth=True)
        ranks = types.TrainerConfig(world_size=self.num_gpus, local_world_size=min(self.num_gpus, self.gpus_a_node))
        return types.TopologyFactory.create_topology(ranks, hardware, kernel)

    def all_reduce_ms(self, num_bytes: float) -> float:
        """Time to reduce dense gradients. Every GPU's card carries a part between nodes, so NVLink may be the limit."""
        n, bandwidth = self.num_gpus, self.nvlink_bandwidth
        if n > self.gpus_a_node:
            bandwidth = min(bandwidth, self.network_bandwidth * self.gpus_a_node)
        return 2 * (n - 1) / n * num_bytes / self.bytes_a_ms(bandwidth)


class Choice(NamedTuple):
    """How tables are kept and exchanged."""

    name: str
    sharding: Sequence[str] = tuple(kind for kind in SHARDINGS[1:] if kind != REPLICATED)  # to choose from
    narrowest: int = 128  # columns of a column-wise shard
    caching: bool = False  # a table may lie in host memory, with a fifth of it cached on the GPU
    half_communication: bool = False  # embeddings and their gradients travel in 16 bits
    half_tables: bool = False


CHOICES = [
    Choice("row-wise", sharding=["row_wise"]),
    Choice("planner's choice"),
    Choice("planner's choice, caching", caching=True),
    Choice("shards of 32 columns", narrowest=32),
    Choice("32 columns, 16-bit exchange", narrowest=32, half_communication=True),
    Choice("32 columns, 16-bit exchange and tables", narrowest=32, half_communication=True, half_tables=True),
]


def plan(workload: Workload, cluster: Cluster, choice: Choice) -> list[types.ShardingOption] | None:
    """TorchRec's plan, with the cost of each shard; None if the tables do not fit. Ties go as Python hashes strings."""
    of_table = ParameterConstraints(
        sharding_types=list(choice.sharding),
        compute_kernels=["fused", "fused_uvm_caching"] if choice.caching else ["fused"],
        min_partition=choice.narrowest,
        pooling_factors=[workload.ids_a_feature],
    )
    planner = EmbeddingShardingPlanner(
        topology=cluster.topology(),
        batch_size=workload.batch_size,
        constraints={f"t{k}": of_table for k in range(workload.num_tables)},
        storage_reservation=FixedPercentageStorageReservation(0.15),  # for dense parameters and activations
        proposer=[GreedyProposer(), UniformProposer()],
        stats=NoopEmbeddingStats(),
        debug=False,
    )
    half = get_qcomm_codecs_registry(QCommsConfig(CommType.FP16, CommType.BF16)) if choice.half_communication else None
    model = workload.build(workload.table_rows(), DataType.FP16 if choice.half_tables else DataType.FP32, "meta")
    apply_optimizer_in_backward(RowWiseAdagrad, model.get_submodule(TABLES).parameters(), {"lr": 0.05})
    try:
        planner.plan(model, [TableSharder(qcomm_codecs_registry=half)])
    except types.PlannerError as error:
        if error.error_type is types.PlannerErrorType.INSUFFICIENT_STORAGE:
            return None
        raise
    return planner._best_plan  # TorchRec shows it in its log only


def step(lookup: float, all_to_all: float, dense: float, all_reduce: float, agreement: float) -> dict[str, Any]:
    """A step's terms in ms, their sum and the longest; the all-reduce runs beside the backward pass."""
    beyond = max(0.0, all_reduce - dense * 2 / 3)
    terms = dict(zip(TERMS, (lookup, all_to_all, dense, beyond, agreement), strict=True))
    longest = max(terms, key=terms.__getitem__).removesuffix("_ms").replace("_", "-")
    return {**terms, "step_ms": sum(terms.values()), "all_reduce_ms_whole": all_reduce, "binds": longest}


def price(planned: Iterable[types.ShardingOption], workload: Workload, cluster: Cluster) -> dict[str, Any]:
    """What a plan costs. Every exchange waits for all GPUs, so each part takes what it takes the slowest."""
    perfs: dict[int, types.Perf] = defaultdict(lambda: types.Perf(0, 0, 0, 0))
    stored: dict[int, types.Storage] = defaultdict(lambda: types.Storage(0, 0))
    shardings: Counter[str] = Counter()
    for option in planned:
        shardings[f"{option.sharding_type}{' cached' if 'caching' in option.compute_kernel else ''}"] += 1
        for shard in option.shards:
            perfs[shard.rank] += shard.perf
            stored[shard.rank] += shard.storage

    def slowest(*parts: str) -> float:
        return sum(max(getattr(perf, part) for perf in perfs.values()) for part in parts)

    flops, parameters = dense_cost(workload)
    return {
        "used_hbm_gb": max(storage.hbm for storage in stored.values()) / 1e9,
        "used_host_gb": max(storage.ddr for storage in stored.values()) / 1e9,
        **step(
            lookup=slowest("fwd_compute", "bwd_compute", "prefetch_compute"),
            all_to_all=slowest("fwd_comms", "bwd_comms"),
            dense=flops * workload.batch_size / (cluster.peak_tflops * cluster.peak_share * 1e9),
            all_reduce=cluster.all_reduce_ms(4 * parameters),
            agreement=cluster.agreement_ms(),
        ),
        "input_ms_ahead": slowest("input_dist_comms"),  # ids to their ranks, by the pipeline: not in the step
        "shardings": "; ".join(f"{number} {kind}" for kind, number in shardings.items()),
    }


def rows_of(workload: Workload, clusters: Sequence[Cluster], choice: Choice) -> Iterator[dict[str, Any]]:
    """A row for each cluster; its efficiency is a GPU's rate relative to the smallest cluster that fits."""
    smallest = None
    for cluster in clusters:
        row = {"choice": choice.name, "gpus": cluster.num_gpus, "fits": False}
        if planned := plan(workload, cluster, choice):
            cost = price(planned, workload, cluster)
            rate = 1000 * workload.batch_size / cost["step_ms"]
            smallest = smallest or rate
            rates = {"samples_per_second": rate * cluster.num_gpus, "efficiency": rate / smallest}
            row |= {"fits": True, **cost, **rates}
        yield row


def line(row: Mapping[str, Any], number: int) -> str:
    """Line ``number`` of the CSV as a row of the table."""
    start = f"| {row['choice']} | {int(row['batch_size']):,} | {row['gpus']} |"
    if not row.get("step_ms"):
        return f"{start} do not fit |{7 * ' |'}"
    times = " | ".join(f"{float(row[f'{term}_ms']):,.1f}" for term in ("lookup", "all_to_all", "dense", "agreement"))
    rate, share = float(row["samples_per_second"]) / 1e6, 100 * float(row["efficiency"])
    step = f"[{float(row['step_ms']):,.1f}]({NAME}#L{number})"
    binds = row["binds"].replace("all-to-all", "exchange")
    return f"{start} {float(row['used_hbm_gb']):.0f} | {times} | {step} | {rate:.1f} | {share:.0f} % | {binds} |"


def draw(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """The terms of each step; row-wise steps, which are fifty times as long, are left out."""
    rows = [row for row in reversed(rows) if row["choice"] != "row-wise"]
    figure = Figure(figsize=(9, 0.34 * len(rows) + 1.2))
    axis = figure.subplots()
    ends = [0.0] * len(rows)
    for term, (name, colour) in TERMS.items():
        widths = [float(row.get(term) or 0) for row in rows]
        axis.barh(range(len(rows)), widths, left=ends, color=colour, label=name)
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    for y, end in enumerate(ends):
        axis.text(end + 0.3, y, f"{end:.1f} ms" if end else "does not fit", va="center", fontsize=8)
    axis.set_xlabel("ms a step, computed")
    names = [f"{row['choice']}, batch {row['batch_size']}: {row['gpus']} GPUs" for row in rows]
    axis.set_yticks(range(len(rows)), names, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="upper right", bbox_to_anchor=(1, -0.08), ncol=3, fontsize=8, frameon=False)
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64, 512], help="default 8 64 512")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="where the files go")
    for field in (*fields(Cluster)[1:], *fields(Workload)[:-1]):
        name, default = f"--{field.name.replace('_', '-')}", field.default
        parser.add_argument(name, type=type(default), default=default, help=f"default {default:g}")
    assumed = vars(parser.parse_args(arguments))
    gpus, folder = sorted(assumed.pop("gpus")), assumed.pop("folder")
    clusters = [Cluster(number, **{f.name: assumed[f.name] for f in fields(Cluster)[1:]}) for number in gpus]
    small = Workload(**{f.name: assumed[f.name] for f in fields(Workload)[:-1]})
    large = replace(small, batch_size=4 * small.batch_size)
    rows: list[dict[str, Any]] = []
    for of_batch, choice in [*((small, choice) for choice in CHOICES), (large, CHOICES[-1])]:
        for row in rows_of(of_batch, clusters, choice):
            rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
            rows.append({"torchrec": torchrec.__version__, **assumed, "batch_size": of_batch.batch_size, **rounded})
            print(line(rows[-1], len(rows) + 1), flush=True)
    pl.DataFrame(rows, infer_schema_length=None).write_csv(folder / NAME)
    draw(rows).savefig(folder / "scaling.png", dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
