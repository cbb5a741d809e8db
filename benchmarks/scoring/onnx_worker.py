"""torch-rechub's model in its own process, in Python and through its ONNX export.

Each line of its input has a batch size and a number of calls; it answers with the seconds of each call, first those in
Python, then those through ONNX.
"""

import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch_rechub.trainers import MTLTrainer

from benchmarks.peers.common import WORKLOADS
from benchmarks.peers.torch_rechub_models import build

TOLERANCE = 1e-5


def seconds(calls, function, *arguments):
    found = []
    for _ in range(calls):
        began = time.perf_counter()
        function(*arguments)
        found.append(time.perf_counter() - began)
    return found


@torch.no_grad()
def main(name: str, file: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    work = WORKLOADS["speed"]
    model = build(name, work).eval()
    MTLTrainer(model, ["classification"] * len(work.tasks)).export_onnx(file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    print(sum(path.stat().st_size for path in Path(file).parent.glob(f"{Path(file).name}*")) / 2**20, flush=True)
    rng = np.random.default_rng(0)
    for line in sys.stdin:
        batch, calls = map(int, line.split())
        ids = {field: rng.integers(0, size, batch) for field, size in work.fields.items()}
        given = {each.name: ids[each.name] for each in session.get_inputs()}
        tensors = {field: torch.from_numpy(of_field) for field, of_field in ids.items()}
        found = np.concatenate([np.asarray(x).reshape(batch, -1) for x in session.run(None, given)], axis=1)
        if not np.abs(found - model(tensors).numpy()).max() < TOLERANCE:
            sys.exit("error: the ONNX model does not score as the model that it was made of")
        times = [*seconds(calls, model, tensors), *seconds(calls, session.run, None, given)]
        print(*times, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
