"""Raw columns become one of few types; what cannot is refused with its column, row and value."""

from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrec_mtl.data.table.columns import read_column, read_values
from torchrec_mtl.data.table.parts import Part
from torchrec_mtl.errors import InputError

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


def read(values: pa.Array, role: str, **options: object) -> tuple[list, dict[int, str]]:
    part = Part(pa.record_batch({"x": values}), "raw.csv")
    read_as_lists = read_values(part, "x", role, **options)
    assert set(part.reasons) == set(np.flatnonzero(part.bad).tolist())
    return read_as_lists.flat.to_pylist(), part.reasons


TEXTS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]


@pytest.mark.parametrize("kind", TEXTS, ids=str)
def test_every_type_of_text_is_read(kind: pa.DataType) -> None:
    text = pa.array(["007", "", None], pa.string()).cast(kind)
    assert read(text, "key") == (["007", None, None], {})
    assert read(text, "integer") == ([7, None, None], {})
    assert read(text, "number") == ([7.0, None, None], {})
    assert read(text, "key", separator="0") == ([None, None, "7"], {})


NUMBERS = [pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.decimal128(22, 2), pa.bool_()]


@pytest.mark.parametrize("kind", NUMBERS, ids=str)
def test_every_type_of_number_is_read(kind: pa.DataType) -> None:
    values = pa.array([1, None]).cast(kind) if kind != pa.float16() else pa.array([np.float16(1), None], kind)
    assert read(values, "number") == ([1.0, None], {})
    assert read(values, "label")[0] == [1.0, None]
    if not pa.types.is_decimal(kind):
        assert read(values, "key") == read(values, "integer") == ([1, None], {})


LISTS = [pa.list_(pa.int64()), pa.large_list(pa.float64()), pa.list_(pa.int64(), 2)]


@pytest.mark.parametrize("kind", LISTS, ids=str)
def test_every_type_of_list_is_read_but_not_as_one_value(kind: pa.DataType) -> None:
    lists = pa.array([[3, None], None, [4, 5]], kind)
    part = Part(pa.record_batch({"x": lists}), "raw.parquet")
    values = read_values(part, "x", "key")
    assert (values.flat.to_pylist(), values.offsets.tolist()) == ([3, None, 4, 5], [0, 2, 2, 4])
    for role in ("key", "integer", "number", "label"):
        with pytest.raises(InputError, match=r"raw\.parquet: column 'x' must hold one value a row, not "):
            read_column(part, "x", role)


def test_lists_of_dictionaries_are_decoded() -> None:
    values = pa.ListArray.from_arrays([0, 2, 3], pa.array(["a", "b", "a"]).dictionary_encode())
    assert read(values, "key") == (["a", "b", "a"], {})


WRONG = {  # role, values, message of the first bad row
    "text as integer": ("integer", ["3", "x7"], "'x7' must be an integer"),
    "text as number": ("number", ["3", "NA"], "'NA' must be a number"),
    "number with a comma": ("number", ["1,5"], "'1,5' must be a number"),
    "infinite number": ("number", [1.0, float("inf")], "inf must be finite"),
    "infinite text": ("number", ["-inf"], "'-inf' must be finite"),
    "too large a text": ("number", ["1e400"], "'1e400' must be finite"),
    "fraction as key": ("key", [1.0, 2.5], "2.5 must be an integer"),
    "key through a float": ("key", [1.0, 2.0**53], "must be below 2\\^53"),
    "negative key through a float": ("key", [-(2.0**60)], "must be below 2\\^53"),
    "key beyond int64": ("key", pa.array([2**63], pa.uint64()), "must be an integer below 2\\^63"),
    "text beyond int64": ("integer", ["9223372036854775808"], "must be an integer below 2\\^63"),
    "label 2": ("label", [0, 1, 2], "label 2.0 must be 0 or 1|label 2 must be 0 or 1"),
    "label as text": ("label", ["yes"], "'yes' must be a number"),
    "no time": ("time", ["2026-11-01", "yesterday"], "'yesterday' must be a time such as 2026-11-01"),
    "no such day": ("time", ["2026-02-30"], "'2026-02-30' must be a time"),
    "German time": ("time", ["01.11.2026"], "must be a time"),
    "a zone missing": ("time", ["2026-11-01T00:00Z", "2026-11-01T00:00+01:00", "2026-11-01"], "with a zone"),
    "a zone too many": ("time", ["2026-11-01", "2026-11-02", "2026-11-01T00:00+01:00"], "must be a time such as"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_value_is_named_with_its_column_and_row(case: str) -> None:
    role, values, message = WRONG[case]
    values = values if isinstance(values, pa.Array) else pa.array(values)
    _, reasons = read(values, role)
    (row,) = reasons
    assert row == len(values) - 1
    with pytest.raises(InputError, match=f"^column 'x', row {row} \\(counted from 0\\): .*({message})"):
        raise InputError(reasons[row])
    lists = pa.array([[], values.slice(0, row).to_pylist(), [values[row].as_py()], []], pa.list_(values.type))
    assert set(read(lists, role)[1]) == {2}  # in lists too, the row is named


@pytest.mark.parametrize(
    ("role", "kind"),
    [
        ("key", pa.date32()),
        ("key", pa.binary()),
        ("number", pa.date32()),
        ("label", pa.timestamp("s")),
        ("time", pa.float64()),
    ],
    ids=str,
)
def test_a_type_that_cannot_hold_such_values_is_refused(role: str, kind: pa.DataType) -> None:
    values = pa.array([b"1"] if kind == pa.binary() else [1], kind)
    with pytest.raises(InputError, match=rf"raw.csv: column 'x' must hold .*, not {kind}".replace("[", r"\[")):
        read(values, role)


@given(st.integers(-(2**63), 2**63 - 1))
def test_integers_are_exact_as_text_and_as_numbers(number: int) -> None:
    assert read(pa.array([str(number)]), "integer") == ([number], {})
    assert read(pa.array([number]), "key") == ([number], {})


UNITS = {"s": 10**6, "ms": 10**3, "us": 1, "ns": 1}


@given(st.datetimes(), st.sampled_from(["s", "ms", "us", "ns"]), st.sampled_from([None, 0, 330, -60]))
def test_a_time_is_the_same_in_every_form(time: datetime, unit: str, zone: int | None) -> None:
    time = time.replace(microsecond=time.microsecond // UNITS[unit] * UNITS[unit])
    zoned = time.replace(tzinfo=timezone.utc if zone is None else timezone(timedelta(minutes=zone)))
    microseconds = (zoned - EPOCH) // timedelta(microseconds=1)
    first, last = (datetime(year, 1, 1, tzinfo=timezone.utc) for year in (1, 9999))
    if not first < zoned < last:
        return
    forms = [pa.array([zoned if zone is not None else time], pa.timestamp("us", None if zone is None else "UTC"))]
    forms += [pa.array([(zoned if zone is not None else time).isoformat(separator)]) for separator in "T "]
    for form in forms:
        assert read(form, "time") == ([microseconds], {})
    integer = microseconds * 1000 if unit == "ns" else microseconds // UNITS[unit]
    if abs(integer) < 2**63:
        assert read(pa.array([integer]), "time", unit=unit) == ([microseconds], {})
        assert read(pa.array([str(integer)]), "time", unit=unit) == ([microseconds], {})


@pytest.mark.parametrize("unit", UNITS)
def test_integers_of_another_unit_do_not_wrap_around(unit: str) -> None:
    largest = 253_402_300_800 * {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]  # the year 10000
    for integer in (largest, 2**63 - 1, -(2**63)):
        if -(2**63) <= integer < 2**63 and unit != "ns":
            found, reasons = read(pa.array([0, integer]), "time", unit=unit)
            assert found == [0, None]
            assert "is `time_unit` right" in reasons[1]


def test_one_bad_time_does_not_change_the_others() -> None:
    texts = [f"2026-11-{day:02}" for day in range(1, 31)]
    expected, _ = read(pa.array(texts), "time")
    found, reasons = read(pa.array([*texts[:17], "x", None, *texts[17:]]), "time")
    assert found == [*expected[:17], None, None, *expected[17:]]
    assert list(reasons) == [17]


def test_a_column_that_is_missing_or_there_twice_is_refused() -> None:
    batch = pa.RecordBatch.from_arrays([pa.array([1]), pa.array([2])], ["x", "x"])
    with pytest.raises(InputError, match=r"raw: column 'x' is there 2 times; the columns are \['x', 'x'\]"):
        read_values(Part(batch, "raw"), "x", "key")
    with pytest.raises(InputError, match="raw: column 'y' is missing"):
        read_values(Part(batch, "raw"), "y", "key")
