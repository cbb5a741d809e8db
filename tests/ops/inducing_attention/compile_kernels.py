"""Compiles the Triton kernels, without a GPU, and prints what each takes as one JSON object per line.

``python -m tests.ops.inducing_attention.compile_kernels CASE ...`` with cases such as
``backward/sm_90/bf16/26,64,32,2,4,2``. The numbers are F, K, D, m, L, T; float32 is ``fp32`` in full precision, or
``tf32``. A case without tasks is one layer with all rows kept.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from torchrec_mtl.ops.inducing_attention.triton import launch
from torchrec_mtl.ops.inducing_attention.triton.launch import BLOCKS, Blocks, Sizes, block_dim

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
KERNELS = {"forward": launch.forward_kernel, "backward": launch.backward_kernel}
INTEGERS = {"order", "active"}
HALVES = {"inputs", "folded_keys", "folded_values", "folded_indicators", "adapter_values", "output", "normalised"}
HALVES |= {"contexts", "upstream", "d_inputs", "d_adapted", "d_contexts"}
CUOBJDUMP = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", "cuobjdump")


def source(name: str, kind: str, sizes: Sizes, samples: int = 8) -> tuple[ASTSource, Blocks]:
    """Returns a kernel with its types and constants as `launch` sets them, ``samples`` in a chunk, and its tiles."""
    kernel, block_d = KERNELS[name], block_dim(sizes.D)
    blocks = BLOCKS[block_d][name == "backward"]
    residuals = ("query", "input") if sizes.TASKS else ("input", "input")
    constants = launch.constants(sizes, residuals, blocks, samples, precision="ieee" if kind == "fp32" else "tf32")
    if name == "forward":
        constants |= launch.forward_constants(sizes, dense=not sizes.TASKS, keep=True)
    else:
        constants |= launch.backward_constants(sizes, blocks, gated=bool(sizes.TASKS), partial=12345)
    signature: dict[str, str] = {}
    for argument in kernel.arg_names:
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument == "num_samples":
            signature[argument] = "i32"
        else:
            half = argument in HALVES and kind not in ("fp32", "tf32")
            signature[argument] = "*i32" if argument in INTEGERS else f"*{kind}" if half else "*fp32"
    aligned = {(i,): [["tt.divisibility", 16]] for i, type_ in enumerate(signature.values()) if type_[0] == "*"}
    return ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned), blocks


def dumped(cubin: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([CUOBJDUMP, option, file.name], check=True, capture_output=True, text=True).stdout


def innermost_spills(sass: str) -> int:
    """Counts the loads and stores of spilled registers in the innermost loops."""
    code = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+(.*?);", sass)]
    jumps = [(at, re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)) for at, text in code]
    loops = {(int(jump[1], 16), at) for at, jump in jumps if jump and int(jump[1], 16) < at}
    depth = {at: len({head for head, end in loops if head <= at <= end}) for at, _ in code}
    deepest = max(depth.values())
    return sum(depth[at] == deepest for at, text in code if re.search(r"\b(LDL|STL)\b", text))


def compile_case(case: str) -> dict[str, Any]:
    name, target, kind, numbers = case.split("/")
    sizes = Sizes(*(int(x) for x in numbers.split(",")))
    kernel, blocks = source(name, kind, sizes)
    options = launch.options(sizes.D, blocks, amd=target == "gfx942")
    compiled = triton.compile(kernel, target=TARGETS[target], options=options)
    found: dict[str, Any] = {"case": case, "shared": compiled.metadata.shared}
    if target == "gfx942":
        text = compiled.asm["amdgcn"]
        for key, field in (("registers", "vgpr_count"), ("spilled", "vgpr_spill_count")):
            found[key] = max(int(x) for x in re.findall(rf"\.{field}:\s+(\d+)", text))
        return found
    usage = dict(re.findall(r"(REG|STACK):(\d+)", dumped(compiled.asm["cubin"], "--dump-resource-usage")))
    spills = innermost_spills(dumped(compiled.asm["cubin"], "--dump-sass"))
    return found | {"registers": int(usage["REG"]), "spilled": int(usage["STACK"]), "innermost_spills": spills}


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        print(json.dumps(compile_case(argument)), flush=True)
