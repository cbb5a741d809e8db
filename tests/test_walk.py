"""A training batch passes the rooms that CONTRIBUTING.md lists, and no others from the command to the kernel."""

import re
import sys
import threading
from pathlib import Path

import torchrec_mtl
from tests.jobs import funnel
from torchrec_mtl.__main__ import main

PACKAGE = Path(torchrec_mtl.__file__).parent
CONTRIBUTING = (PACKAGE.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
LISTED = re.findall(r"^\| `([\w/]+\.py)` \|", CONTRIBUTING, re.M)
FEED = [file for file in LISTED if file.startswith("data/") or file == "training/stream.py"]


def test_a_batch_passes_the_listed_rooms(tmp_path):
    entered, stack = set(), []

    def note(frame, event, _):
        file = frame.f_code.co_filename
        if event != "call" or not file.startswith(f"{PACKAGE}/"):
            return
        entered.add(file.removeprefix(f"{PACKAGE}/"))
        if not stack and frame.f_code.co_name == "inducing_stack":
            while frame is not None:
                stack.insert(0, frame.f_code.co_filename)
                frame = frame.f_back

    data = funnel.prepare(tmp_path / "data", train=200, valid=100, test=100)
    threading.setprofile(note)  # the loader's thread
    sys.setprofile(note)
    try:
        main(["train", "--models", "tafe", "--dataset", str(data), "--output", str(tmp_path / "runs")])
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    ours = [file.removeprefix(f"{PACKAGE}/") for file in stack if file.startswith(f"{PACKAGE}/")]
    assert list(dict.fromkeys(ours)) == [file for file in LISTED if file not in FEED]
    assert set(FEED) <= entered
