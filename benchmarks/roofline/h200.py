"""What an H200 can do at most: NVIDIA's data sheet of the H200 SXM, and the CUDA programming guide.

Rates of products are those without sparsity, half of what the data sheet has. The clock is the one at which 132
multiprocessors of 128 multiply-adds reach the sheet's 67 TFLOP/s in float32.
"""

import torch

from benchmarks.roofline.algebra import Work

PROCESSORS, SCHEDULERS, CLOCK = 132, 4, 1.98e9
BYTES_A_SECOND = 4.8e12
FLOP_A_SECOND = {torch.bfloat16: 989.4e12, torch.float32: 494.7e12 / 3}  # float32 by three products of tf32
EXPONENTIALS_A_SECOND = 16 * PROCESSORS * CLOCK  # of capability 9.0, the guide's table of arithmetic instructions
INSTRUCTIONS_A_SECOND = SCHEDULERS * PROCESSORS * CLOCK  # of warps


def seconds(of: Work, dtype: torch.dtype) -> dict[str, float]:
    """The time that each part takes at least; the longest binds."""
    return {
        "memory": of.bytes / BYTES_A_SECOND,
        "products": of.flop / FLOP_A_SECOND[dtype],
        "exponentials": of.exponentials / EXPONENTIALS_A_SECOND,
    }
