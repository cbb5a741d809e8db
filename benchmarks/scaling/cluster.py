"""GPUs as the cost model sees them. All bandwidths are of one GPU, in one direction, in GB/s."""

from dataclasses import dataclass

from torchrec.distributed.planner.types import (
    HardwareConfig,
    KernelConfig,
    Topology,
    TopologyFactory,
    TrainerConfig,
)


def _bytes_a_ms(gigabytes_a_second: float) -> float:
    return gigabytes_a_second * 1e6


@dataclass(frozen=True)
class Cluster:
    """What is assumed of the machines.

    Args:
        num_gpus: of all nodes.
        gpus_a_node: joined by NVLink; each has a network card of its own.
        hbm_gb: memory of a GPU.
        host_memory_gb: of a node's memory, one GPU's part.
        hbm_bandwidth: reading rows from the GPU's memory.
        pcie_bandwidth: between GPU and host memory.
        nvlink_bandwidth: to the GPUs of the node.
        network_bandwidth: to other nodes.
        bandwidth_share: how much of each bandwidth is reached.
        peak_tflops: of matrix products.
        peak_share: how much of it is reached.
        message_us: what one small message between two processes takes over TCP.
    """

    num_gpus: int
    gpus_a_node: int = 8
    hbm_gb: float = 80.0
    host_memory_gb: float = 250.0
    hbm_bandwidth: float = 3350.0
    pcie_bandwidth: float = 64.0
    nvlink_bandwidth: float = 450.0
    network_bandwidth: float = 50.0
    bandwidth_share: float = 0.8
    peak_tflops: float = 989.0
    peak_share: float = 0.4
    message_us: float = 20.0

    def topology(self) -> Topology:
        """For TorchRec's planner."""
        share = self.bandwidth_share
        hardware = HardwareConfig(
            hbm_cap_bytes=int(self.hbm_gb * 1e9),
            ddr_cap_bytes=int(self.host_memory_gb * 1e9),
            intra_host_bw=_bytes_a_ms(share * self.nvlink_bandwidth),
            inter_host_bw=_bytes_a_ms(share * self.network_bandwidth),
            hbm_mem_bw=_bytes_a_ms(share * self.hbm_bandwidth),
            hbm_to_ddr_mem_bw=_bytes_a_ms(share * self.pcie_bandwidth),
        )
        # without the flag TorchRec takes figures of its own for all bandwidths, and says nothing
        kernel = KernelConfig(compute_device="cuda", use_hardware_based_bandwidth=True)
        ranks = TrainerConfig(world_size=self.num_gpus, local_world_size=min(self.num_gpus, self.gpus_a_node))
        return TopologyFactory.create_topology(ranks, hardware, kernel)

    def dense_ms(self, flops: float) -> float:
        """Of a step's matrix products on one GPU."""
        return flops / (self.peak_tflops * 1e9 * self.peak_share)

    def all_reduce_ms(self, num_bytes: float) -> float:
        """Of dense gradients. Between nodes every GPU's card carries a part, so NVLink may be what limits it."""
        n = self.num_gpus
        bandwidth = self.nvlink_bandwidth
        if n > self.gpus_a_node:
            bandwidth = min(bandwidth, self.network_bandwidth * self.gpus_a_node)
        return 2 * (n - 1) / n * num_bytes / _bytes_a_ms(bandwidth * self.bandwidth_share)

    def agreement_ms(self) -> float:
        """Of the few numbers on which ranks agree in every step: gloo's all-reduce passes them round a ring twice."""
        return 2 * (self.num_gpus - 1) * self.message_us / 1000
