"""The Triton kernels, compiled without a GPU: registers and spills stay within a budget.

The sizes are the paper's (float32, D 18) and those of larger models; `compile_kernels` compiles any other.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

# Registers per thread; bytes of stack, which hold the registers that do not fit (AMD: spilled registers); spills in
# the innermost loops. The numbers of a case are F, K, D, m, L, T.
BUDGETS = {
    "forward/sm_90/fp32/20,64,18,2,4,2": (255, 0, 0),
    "backward/sm_90/fp32/20,64,18,2,4,2": (255, 384, 64),
    "forward/sm_90/tf32/20,64,18,2,4,2": (255, 32, 0),
    "backward/sm_90/tf32/20,64,18,2,4,2": (255, 160, 0),
    "backward/sm_90/fp32/128,64,64,4,4,4": (255, 3072, 1024),
    "forward/sm_80/bf16/20,64,16,2,4,2": (255, 0, 0),
    "backward/sm_80/bf16/20,64,16,2,4,2": (255, 320, 0),
    "forward/gfx942/bf16/20,64,16,2,4,2": (512, 0, 0),
    "backward/gfx942/bf16/20,64,16,2,4,2": (512, 0, 0),
    "forward/sm_90/bf16/16,16,16,2,1,0": (96, 0, 0),
    "backward/sm_90/bf16/16,16,16,2,1,0": (192, 0, 0),
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, int]]:
    """What each case takes, from another process, because in this one the kernels may be interpreted."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    command = [sys.executable, "-m", "tests.ops.inducing_attention.compile_kernels", *BUDGETS]
    run = subprocess.run(
        command, cwd=Path(__file__).parents[3], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    return {found["case"]: found for found in map(json.loads, run.stdout.splitlines())}


@pytest.mark.slow
@pytest.mark.parametrize("case", BUDGETS)
@pytest.mark.verify
def test_a_kernel_compiles_within_its_budget(case: str, compiled: dict[str, dict[str, int]]) -> None:
    found = compiled[case]
    registers, spilled, innermost = BUDGETS[case]
    assert found["registers"] <= registers
    assert found["spilled"] <= spilled
    assert found.get("innermost_spills", 0) <= innermost
