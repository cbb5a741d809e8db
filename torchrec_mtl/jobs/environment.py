"""What the jobs' processes are started with."""

# glibc gives large blocks back to the kernel when they are freed, and on a CPU a step then spends up to half its
# time on page faults.
KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**32)}


def worker_environment(cores: int, processes: int) -> dict[str, str]:
    """Environment variables of ``processes`` that share ``cores``."""
    return {"OMP_NUM_THREADS": str(max(1, cores // processes)), **KEEP_FREED_MEMORY}
