"""A step for the tests of `benchmarks.gpu`, which ends in the way that it is told."""

import multiprocessing
import os
import subprocess
import sys
import time


def measure(add, pretend, way, file=""):
    """Measures one row, and then does not come to its end unless ``way`` is "ends"."""
    how = "from nothing" if os.getppid() == multiprocessing.parent_process().pid else "in a fork"
    add({"what": "stack", "candidate": how, "median": 1.5})
    if way == "raises":
        raise RuntimeError("out\nof memory")
    if way == "crashes":
        os.abort()
    if way == "hangs":
        child = f"import os, time; open({file!r}, 'w').write(str(os.getpid())); time.sleep(600)"
        subprocess.Popen([sys.executable, "-c", child])
        time.sleep(600)
