"""What is counted, and which ids a vocabulary gives for it."""

from collections import Counter

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torchrec_mtl.data.table import Vocabulary, counts
from torchrec_mtl.data.table.counts import Counts
from torchrec_mtl.errors import InputError

ids = st.integers(1, 9) | st.integers(1, 10**18 - 1)


@pytest.mark.parametrize("num_pending", [3, 2**20])
@given(
    parts=st.lists(st.lists(st.tuples(ids, st.integers(0, 5)), min_size=1)),
    once=st.lists(st.none() | ids),
    min_count=st.integers(1, 6),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_values_that_occur_often_enough(
    num_pending: int, parts: list, once: list, min_count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counts, "NUM_PENDING", num_pending)
    counted, expected = Counts(), Counter(value for value in once if value is not None)
    counted.add(pa.array(once, pa.int64()))
    for part in parts:
        values, weights = zip(*part, strict=True)
        counted.add_table(pl.DataFrame({"value": values, "count": weights}))
        for value, weight in part:
            expected[value] += weight
    fitted = Vocabulary("101", min_count=min_count).fit(counted.table())
    kept = fitted["values"].values.to_pylist()
    assert sorted(kept) == sorted(value for value, count in expected.items() if count >= min_count)
    assert [expected[value] for value in kept] == sorted((expected[value] for value in kept), reverse=True)


@given(
    st.dictionaries(ids, st.integers(1, 3)) | st.dictionaries(st.text(min_size=1), st.integers(1, 3)),
    st.lists(ids),
    st.sampled_from([None, 2]),
    st.sampled_from(["count", "value"]),
    st.sampled_from(["own", "missing"]),
)
def test_ids_are_in_the_declared_order(
    known: dict, others: list, max_size: int | None, order: str, unknown: str
) -> None:
    field = Vocabulary("101", max_size=max_size, order=order, unknown=unknown)
    ranked = sorted(known, key=lambda value: (-known[value], value))[:max_size]
    counted = Counts()
    if known:
        counted.add_table(pl.DataFrame({"value": list(known), "count": list(known.values())}))
    fitted = field.fit(counted.table())
    first = 2 if unknown == "own" else 1
    codes = {value: code for code, value in enumerate(sorted(ranked) if order == "value" else ranked, first)}
    kind = pa.int64() if all(isinstance(value, int) for value in known) else pa.string()
    sought = [*known, None, *([str(other) for other in others] if kind == pa.string() else others)]
    expected = [0 if value is None else codes.get(value, first - 1) for value in sought]
    assert field.encode(pa.array(sought, kind), fitted).tolist() == expected
    assert field.num_embeddings(fitted) == first + len(ranked)


def test_an_order_or_an_unknown_id_that_there_is_not() -> None:
    for wrong, message in (({"order": "name"}, "`order` of field `city`"), ({"unknown": "last"}, "`unknown` of field")):
        with pytest.raises(InputError, match=message):
            Vocabulary("city", **wrong)
