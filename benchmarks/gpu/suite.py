"""Tests that need a GPU, a row for each: its outcome and, where it failed, why."""

import importlib.util
import os
from collections.abc import Callable

import pytest

from benchmarks.record import ROOT, Row


class _Rows:
    """A plugin of pytest."""

    def __init__(self, add: Callable[[Row], None]) -> None:
        self.add = add

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            row = {"what": "test", "test": report.nodeid, "outcome": report.outcome}
            self.add({**row, "test_seconds": round(report.duration, 2), **self._error(report)})

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.add({"what": "test", "test": report.nodeid, "outcome": "failed", **self._error(report)})

    @staticmethod
    def _error(report: pytest.TestReport | pytest.CollectReport) -> Row:
        return {"error": " ".join(report.longreprtext.split())[-300:]} if report.failed else {}


def measure(add: Callable[[Row], None], pretend: bool, folder: str) -> None:
    """Runs the tests of a folder, in several processes where pytest-xdist is installed; on a CPU those that skip it."""
    folder, xdist = "tests/gpu" if pretend else folder, importlib.util.find_spec("xdist") is not None
    processes = ["-n", str(min(8, os.cpu_count() or 1))] if xdist and not pretend else []
    options = ["-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT), *processes]
    status = pytest.main([*options, str(ROOT / folder)], plugins=[_Rows(add)])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest ended with status {int(status)}")
