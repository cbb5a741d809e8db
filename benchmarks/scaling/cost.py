"""A training step's time and memory on a cluster, from TorchRec's planner and the model's FLOPs."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry
from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints
from torchrec.distributed.planner.proposers import GreedyProposer, UniformProposer
from torchrec.distributed.planner.stats import NoopEmbeddingStats
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.distributed.planner.types import Perf, PlannerError, PlannerErrorType, ShardingOption, Storage
from torchrec.modules.embedding_configs import DataType

from benchmarks.scaling.cluster import Cluster
from benchmarks.scaling.workload import Workload
from torchrec_mtl.training.config import SHARDINGS
from torchrec_mtl.training.sharding import REPLICATED, TableSharder

RESERVED = 0.15  # of a GPU's memory, for dense parameters, activations and buffers


@dataclass(frozen=True)
class Choice:
    """What one may choose.

    Args:
        name: what a report calls it.
        sharding: types to choose from; by default all that keep the optimizer in the backward pass.
        narrowest: columns of a column-wise shard, at least.
        caching: whether a table may lie in host memory, with a fifth of it cached on the GPU.
        half_communication: whether embeddings and their gradients travel in 16 bits.
        half_tables: whether tables are kept in 16 bits.
    """

    name: str
    sharding: tuple[str, ...] = tuple(kind for kind in SHARDINGS[1:] if kind != REPLICATED)
    narrowest: int = 128
    caching: bool = False
    half_communication: bool = False
    half_tables: bool = False


@dataclass(frozen=True)
class Cost:
    """Of a step; all times in ms, of the slowest GPU in each part.

    Args:
        lookup: reading rows, and updating them.
        all_to_all: embeddings to the ranks whose rows they belong to, and gradients back.
        dense: matrix products, forward and backward.
        all_reduce: of dense gradients; it runs beside the backward pass, and costs what is longer.
        agreement: on the number of rows and whether the loss is finite.
        input: ids to the ranks that hold their rows. The pipeline does this ahead: not in `step`.
        hbm_gb: tables with optimizer state and buffers, of the fullest GPU.
        host_gb: of a node's memory, the part of the GPU with most.
        shardings: how many tables of each type.
    """

    lookup: float
    all_to_all: float
    dense: float
    all_reduce: float
    agreement: float
    input: float
    hbm_gb: float
    host_gb: float
    shardings: dict[str, int] = field(default_factory=dict)

    @property
    def terms(self) -> dict[str, float]:
        """What a step is the sum of."""
        hidden_by = self.dense * 2 / 3  # the backward pass
        return {
            "lookup": self.lookup,
            "all-to-all": self.all_to_all,
            "dense": self.dense,
            "all-reduce": max(0.0, self.all_reduce - hidden_by),
            "agreement": self.agreement,
        }

    @property
    def step(self) -> float:
        """Of all."""
        return sum(self.terms.values())

    @property
    def binding(self) -> str:
        """The longest part."""
        return max(self.terms, key=self.terms.__getitem__)


def plan(workload: Workload, cluster: Cluster, choice: Choice) -> list[ShardingOption] | None:
    """TorchRec's plan, with what it expects each shard to cost; None if the tables do not fit."""
    kernels = ["fused", "fused_uvm_caching"] if choice.caching else ["fused"]
    of_table = ParameterConstraints(
        sharding_types=list(choice.sharding),
        compute_kernels=kernels,
        min_partition=choice.narrowest,
        pooling_factors=[workload.ids_a_feature],
    )
    planner = EmbeddingShardingPlanner(
        topology=cluster.topology(),
        batch_size=workload.batch_size,
        constraints={f"t{k}": of_table for k in range(workload.num_tables)},
        storage_reservation=FixedPercentageStorageReservation(RESERVED),
        proposer=[GreedyProposer(), UniformProposer()],
        stats=NoopEmbeddingStats(),
        debug=False,
    )
    codecs = None
    if choice.half_communication:
        codecs = get_qcomm_codecs_registry(QCommsConfig(CommType.FP16, CommType.BF16))
    model = workload.on_meta(DataType.FP16 if choice.half_tables else DataType.FP32)
    try:
        planner.plan(model, [TableSharder(qcomm_codecs_registry=codecs)])
    except PlannerError as error:
        if error.error_type is PlannerErrorType.INSUFFICIENT_STORAGE:
            return None
        raise
    return planner._best_plan  # TorchRec shows it in its log only


def price(planned: Iterable[ShardingOption], workload: Workload, cluster: Cluster) -> Cost:
    """What a plan costs. Every exchange waits for all, so each part takes what it takes the slowest GPU."""
    perfs: dict[int, Perf] = defaultdict(lambda: Perf(0, 0, 0, 0))
    stored: dict[int, Storage] = defaultdict(lambda: Storage(0, 0))
    shardings: dict[str, int] = defaultdict(int)
    for option in planned:
        shardings[f"{option.sharding_type}{' cached' if 'caching' in option.compute_kernel else ''}"] += 1
        for shard in option.shards:
            perfs[shard.rank] += shard.perf
            stored[shard.rank] += shard.storage

    def slowest(*parts: str) -> float:
        return sum(max(getattr(perf, part) for perf in perfs.values()) for part in parts)

    flops, parameters = workload.dense_cost()
    return Cost(
        lookup=slowest("fwd_compute", "bwd_compute", "prefetch_compute"),
        all_to_all=slowest("fwd_comms", "bwd_comms"),
        dense=cluster.dense_ms(flops * workload.batch_size),
        all_reduce=cluster.all_reduce_ms(4 * parameters),
        agreement=cluster.agreement_ms(),
        input=slowest("input_dist_comms"),
        hbm_gb=max(storage.hbm for storage in stored.values()) / 1e9,
        host_gb=max(storage.ddr for storage in stored.values()) / 1e9,
        shardings=dict(shardings),
    )
