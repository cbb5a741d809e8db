"""The building blocks of the features, on small tables."""

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from torchrec_mtl.datasets.complete_journey.features import EDGES, bucket, earlier_weeks, pack

events = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(1, 12), st.integers(0, 9)), min_size=1)


def frame(rows: list[tuple[int, int, int, int]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["household", "line", "week", "units"], orient="row")


@given(events, events, st.sampled_from([None, 1, 4]))
def test_earlier_weeks_counts_only_earlier_weeks_of_the_same_keys(rows: list, log: list, window: int | None) -> None:
    found = earlier_weeks(frame(rows), frame(log), ["household", "line"], ["units"], window)
    assert found.height == len(rows)
    for (household, line, week, _), row in zip(rows, found.iter_rows(named=True), strict=True):
        events = [
            (event_week, units)
            for event_household, event_line, event_week, units in log
            if (event_household, event_line) == (household, line)
            and event_week < week
            and (window is None or event_week >= week - window)
        ]
        weeks = {event_week for event_week, _ in events}
        assert row["weeks"] == len(weeks)
        assert row["recency"] == (week - max(weeks) if weeks else 0)
        assert row["units"] == sum(units for _, units in events)


def test_bucket_counts_the_edges_reached() -> None:
    values = pl.DataFrame({"value": [0.0, 0.29, 0.3, 0.7, 1.0, None]})
    assert EDGES["hh_deal_share"][:2] == (0, 0.3)
    buckets = values.select(bucket("hh_deal_share", pl.col("value")))["hh_deal_share"]
    assert buckets.to_list() == [1, 1, 2, 8, 8, 0]


@given(st.lists(st.tuples(st.integers(0, 2**20 - 1), st.integers(0, 2**20 - 1), st.integers(1, 63))))
def test_packed_keys_sort_as_keys_do(keys: list[tuple[int, int, int]]) -> None:
    table = pl.DataFrame(keys, schema=["household", "line", "week"], orient="row").cast(pl.Int32)
    packed = table.select(pack(["household", "line", "week"])).to_series().to_list()
    assert [key for _, key in sorted(zip(packed, keys, strict=True))] == sorted(keys)
    assert len(set(packed)) == len(set(keys))
