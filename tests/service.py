"""The service of examples/service in a process of its own, at a free port."""

import http.client
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PROGRAM = ROOT / "examples" / "service"


class Service:
    """Starts a service, and waits until it answers.

    Args:
        package: what it serves.
        log: file for what it prints.
        options: further arguments.

    Attributes:
        port: where it listens.
        process: its process.
    """

    def __init__(self, package: Path, log: Path, *options: str) -> None:
        command = [sys.executable, "-W", "ignore", str(PROGRAM), str(package), "--port", "0", *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with log.open("w") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        self.log = log
        while not (said := re.search(r"running on http://127\.0\.0\.1:(\d+)", log.read_text())):
            if self.process.poll() is not None:
                raise RuntimeError(f"the service ended:\n{log.read_text()[-3000:]}")
            time.sleep(0.1)
        self.port = int(said[1])

    def request(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (names in lower case) and body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {"content-type": "application/json", **headers})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def predict(self, rows: Any, values: Any = None) -> dict[str, Any]:
        """The answer to rows that are right."""
        status, _, body = self.request("POST", "/predict", json.dumps({"rows": rows, "values": values}).encode())
        assert status == 200, body
        return json.loads(body)

    def health(self) -> dict[str, Any]:
        """What ``/health`` says."""
        return json.loads(self.request("GET", "/health")[2])

    def metrics(self) -> dict[str, float]:
        """The values of ``/metrics`` by name with labels."""
        lines = self.request("GET", "/metrics")[2].decode().splitlines()
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}

    def stop(self) -> int:
        """Ends it as a supervisor does; returns its status."""
        self.process.terminate()
        return self.process.wait(timeout=60)
