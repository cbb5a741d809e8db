"""The side of the program that gives the libraries their turns."""

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


class Library:
    """A library's process. After a failure it is asked no more, and ``failure`` says why.

    Args:
        name: of the library.
        python: the interpreter it is installed for.
        folder: the rows, see `worker.py`.
        threads: of the process.
        worker: the program, ``worker LIBRARY FOLDER``.
    """

    def __init__(
        self, name: str, python: str | Path, folder: Path, threads: int = 1, worker: Path = HERE / "worker.py"
    ) -> None:
        self.name, self.failure = name, ""
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # until `__exit__`
        environment: Mapping[str, str] = {
            **os.environ,
            "PYTHONPATH": str(HERE.parents[1]),
            "OMP_NUM_THREADS": str(threads),
        }
        self._process = subprocess.Popen(
            [python, worker, name, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
        )

    def ask(self, do: str, **arguments: Any) -> Any:
        """The answer of the worker's method ``do``; None once anything has failed."""
        if self.failure:
            return None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died; there is no answer either
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": self._last_words()}
        self.failure = answer.get("error", "")
        return answer.get("is")

    def _last_words(self) -> str:
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return lines[-1] if lines else f"its process ended with status {self._process.returncode}"

    def __enter__(self) -> "Library":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._errors.close()
