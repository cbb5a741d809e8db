"""The service under load: nothing is lost while packages are exchanged, and memory does not grow.

It installs Locust, so it runs only where ``TORCHREC_MTL_LOAD`` is set: to the seconds of load, 1800 by hand.
"""

import csv
import os
import subprocess
import sys

import pytest

from benchmarks import record

SECONDS = os.environ.get("TORCHREC_MTL_LOAD")


@pytest.mark.slow
@pytest.mark.skipif(SECONDS is None, reason="set TORCHREC_MTL_LOAD=60")
def test_nothing_is_lost_and_memory_stays(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.service", "--seconds", SECONDS]
    subprocess.run([*command, "--results", str(tmp_path / "service.csv")], cwd=record.ROOT, check=True)
    found = {}
    with (tmp_path / "service.csv").open() as lines:
        for row in csv.DictReader(lines):
            found.setdefault((row["users"], row["rows"]), {})[row["figure"]] = float(row["median"])
    assert len(found) == 4
    for way, figures in found.items():
        assert figures["requests"] > 0
        assert figures["lost"] == 0, way
        assert figures["packages taken"] == 1, way
        assert figures["memory, last quarter"] < 1.2 * figures["memory, first quarter"], way
