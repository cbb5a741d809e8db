"""Histories are what looking at all pairs of rows gives, in one partition or in many."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.table import history
from torchrec_mtl.data.table.history import HistoryBuilder, earlier_values
from torchrec_mtl.data.table.ids import DAY, History


def brute_force(groups: Array, times: Array, values: Array, listed: Array, last: int, within: int | None) -> list[list]:
    """Looks at all pairs of rows; among rows of equal time, the order is that of the rows."""
    lists = []
    for group, time in zip(groups, times, strict=True):
        earlier = [
            row
            for row in np.argsort(times, kind="stable")
            if groups[row] == group
            and times[row] < time
            and listed[row]
            and (within is None or times[row] >= time - within)
        ]
        lists.append([int(values[row]) for row in earlier][-last:])
    return lists


def draw(seed: int, num_rows: int, num_groups: int, num_times: int) -> tuple[Array, Array, Array, Array]:
    generator = np.random.default_rng(seed)
    groups, times = generator.integers(-2, num_groups - 2, num_rows), generator.integers(num_times, size=num_rows) * DAY
    return groups, times, generator.integers(2**31 - 1, size=num_rows), generator.random(num_rows) < 0.7


SIZES = {"num_rows": st.integers(0, 40), "num_groups": st.integers(1, 5), "num_times": st.integers(1, 12)}


@given(st.integers(0, 2**32), st.fixed_dictionaries(SIZES), st.integers(1, 6), st.integers(0, 9))
def test_lists_are_those_of_all_pairs_of_rows(seed: int, sizes: dict[str, int], last: int, days: int) -> None:
    rows, within = draw(seed, **sizes), days * DAY or None
    values, offsets = earlier_values(*rows, last=last, within=within)
    assert [each.tolist() for each in np.split(values, offsets[1:-1])][: len(rows[0])] == brute_force(
        *rows, last, within
    )
    assert len(offsets) == len(rows[0]) + 1


@pytest.mark.parametrize("rows_in_memory", [1, 7, 50, 10**6])
def test_partitions_and_parts_change_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rows_in_memory: int
) -> None:
    monkeypatch.setattr(history, "ROWS_IN_MEMORY", rows_in_memory)
    histories = (History("clicked", "item", last=3, where="click"), History("recent", "shop", last=9, within="4d"))
    num_rows = 150 if rows_in_memory > 1 else 30
    groups, times, items, clicked = draw(1, num_rows, 9, 12)
    shops, all_listed = items[::-1].copy(), np.ones(num_rows, bool)
    builder = HistoryBuilder(histories, num_rows, tmp_path / "histories")
    for part in np.array_split(np.arange(num_rows), [0, 10, 11, 60]):
        values = {"clicked": items[part], "recent": shops[part]}
        builder.add(groups[part], times[part], values, {"clicked": clicked[part], "recent": all_listed[part]})
    reader = builder.read()
    found: dict[str, list[list[int]]] = {"clicked": [], "recent": []}
    for part in np.array_split(np.arange(num_rows), [20, 20, 21, 90]):
        for name, (values, offsets) in reader.take(len(part)).items():
            found[name] += [each.tolist() for each in np.split(values, offsets[1:-1])][: len(part)]
    assert found["clicked"] == brute_force(groups, times, items, clicked, 3, None)
    assert found["recent"] == brute_force(groups, times, shops, all_listed, 9, 4 * DAY)
    builder.close()
    assert not (tmp_path / "histories").exists()


MEMORY = """
import sys
import numpy as np
from pathlib import Path
from torchrec_mtl.data.table import history
history.ROWS_IN_MEMORY = 2**16
num_rows, part_rows = int(sys.argv[1]), 2**15
builder = history.HistoryBuilder((history.History("recent", "item", last=20),), num_rows, Path(sys.argv[2]))
for part in range(num_rows // part_rows):
    generator = np.random.default_rng(part)
    groups = generator.integers(num_rows // 30, size=part_rows)
    times = np.full(part_rows, part) + np.arange(part_rows)
    builder.add(groups, times, {"recent": groups}, {"recent": np.full(part_rows, True)})
reader = builder.read()
for part in range(num_rows // part_rows):
    reader.take(part_rows)
print(*(line.split()[1] for line in Path('/proc/self/status').open() if line.startswith('VmHWM')))
"""


@pytest.mark.verify
@pytest.mark.slow
def test_memory_does_not_follow_the_number_of_rows(tmp_path: Path) -> None:
    peaks = []
    for number, num_rows in enumerate((2**18, 2**21)):
        command = [sys.executable, "-c", MEMORY, str(num_rows), str(tmp_path / str(number))]
        peaks.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1024)
    assert peaks[1] < peaks[0] + 150  # MiB, where the lists of all rows would need 500 more
