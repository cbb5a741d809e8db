import pytest

from benchmarks.balancing import check


def test_nothing_is_timed_where_a_method_reports_another_loss() -> None:
    check({"sum": 1.25, "mgda": 1.25})
    with pytest.raises(SystemExit, match=r"mgda reports a loss of 1.5, not 1.25"):
        check({"sum": 1.25, "mgda": 1.5})
