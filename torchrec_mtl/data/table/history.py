"""Histories: the last values of a group's rows strictly before each row."""

import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from torchrec_mtl.data.lists import Array, concatenate_ranges
from torchrec_mtl.data.raw.hashes import finalise
from torchrec_mtl.data.table.ids import History

ROWS_IN_MEMORY = 2**21  # of one partition of groups
ROWS_WAITING = 2**18  # rows of all partitions that `HistoryReader` holds


def earlier_values(
    groups: Array, times: Array, values: Array, listed: Array, *, last: int, within: int | None
) -> tuple[Array, Array]:
    """Returns for each row the values of its group's rows strictly before it.

    Args:
        groups: group of each row, int64 [N].
        times: time of each row, int64 [N].
        values: value of each row [N].
        listed: whether the row's value appears in later rows' lists, bool [N].
        last: largest number of values in a list; the newest are kept.
        within: only rows at most this long before are listed; None for no limit.

    Returns:
        Values [V], oldest first, rows of equal time in their order here, and offsets [N + 1].

    Example::

        >>> groups, times, values = np.array([1, 1, 1, 2]), np.array([5, 5, 9, 9]), np.array([10, 20, 30, 40])
        >>> ids, offsets = earlier_values(groups, times, values, np.full(4, True), last=5, within=None)
        >>> np.split(ids, offsets[1:-1])[2].tolist(), offsets.tolist()
        ([10, 20], [0, 0, 0, 2, 2])
    """
    order = np.lexsort((times, groups))  # stable: rows of equal time stay in their order
    inverse = np.empty(len(order), np.int64)
    inverse[order] = np.arange(len(order))
    groups, times, values, listed = groups[order], times[order], values[order], listed[order]
    new_group = np.concatenate([[True], groups[1:] != groups[:-1]])[: len(groups)]
    new_time = np.concatenate([[True], times[1:] != times[:-1]])[: len(groups)] | new_group
    num_listed = np.concatenate([[0], listed.cumsum()])
    row = np.arange(len(groups))

    def since_last(starts: Array) -> Array:
        """For each row, the number of listed rows before the last of ``starts`` up to it."""
        return num_listed[np.maximum.accumulate(np.where(starts, row, 0))]

    stop = since_last(new_time)
    start = np.maximum(since_last(new_group), stop - last)
    if within is not None:
        known = np.unique(times)
        group_keys = new_group.cumsum() * (len(known) + 1)  # with the time's rank added, sorted as the rows are
        ranks = known.searchsorted(np.stack([times, times - within]))
        first = (group_keys + ranks[0]).searchsorted(group_keys + ranks[1])
        start = np.maximum(start, num_listed[first])
    lengths = (stop - start)[inverse]
    return values[listed][concatenate_ranges(start[inverse], lengths)], np.concatenate([[0], lengths.cumsum()])


class HistoryBuilder:
    """Builds the histories of more rows than memory holds: groups are divided by hash into partitions on disk.

    Rows are added in order with `add`; `read` then gives the lists in the same order. Memory follows `ROWS_IN_MEMORY`,
    `ROWS_WAITING` and the lengths of lists, not the number of rows.

    Args:
        histories: the histories.
        num_rows: number of rows that will be added.
        folder: folder for the partitions, which `close` removes.
        wide: names of the histories whose ids need 64 bits.
    """

    def __init__(self, histories: tuple[History, ...], num_rows: int, folder: Path, wide: Collection[str] = ()) -> None:
        self.histories, self._folder, self._wide, self._num_rows = histories, folder, wide, 0
        self._num_partitions = -(-num_rows // ROWS_IN_MEMORY)
        folder.mkdir()
        self._writers: dict[int, pa.ipc.RecordBatchFileWriter] = {}

    def add(self, groups: Array, times: Array, values: dict[str, Array], listed: dict[str, Array]) -> None:
        """Adds rows: group and time [N], and for each history the ids [N] and whether they are listed [N]."""
        rows = np.arange(self._num_rows, self._num_rows + len(groups))
        self._num_rows += len(groups)
        partitions = finalise(groups.astype(np.uint64)) % np.uint64(self._num_partitions)
        columns = {"row": rows, "group": groups, "time": times}
        for name in values:
            columns |= {f"value {name}": values[name].astype(np.int64), f"listed {name}": listed[name]}
        for partition in range(self._num_partitions):
            chosen = partitions == partition
            batch = pa.record_batch({name: column[chosen] for name, column in columns.items()})
            if partition not in self._writers:
                self._writers[partition] = pa.ipc.new_file(self._folder / f"rows_{partition}.arrow", batch.schema)
            self._writers[partition].write_batch(batch)

    def read(self) -> "HistoryReader":
        """Builds the lists, partition by partition, and returns a reader of them."""
        for writer in self._writers.values():
            writer.close()
        for partition in range(self._num_partitions):
            self._build(partition)
        return HistoryReader(self.histories, [self._folder / f"lists_{n}.arrow" for n in range(self._num_partitions)])

    def _build(self, partition: int) -> None:
        file = self._folder / f"rows_{partition}.arrow"
        with pa.ipc.open_file(file) as opened:
            table = opened.read_all()
        file.unlink()
        columns = {name: table[name].to_numpy() for name in table.column_names}
        lists: dict[str, pa.Array] = {"row": pa.array(columns["row"])}
        for each in self.histories:
            values, offsets = earlier_values(
                columns["group"],
                columns["time"],
                columns[f"value {each.name}"],
                columns[f"listed {each.name}"],
                last=each.last,
                within=each.within_us,
            )
            kind = pa.int64() if each.name in self._wide else pa.int32()
            lists[each.name] = pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), pa.array(values, kind))
        whole = pa.table(lists)
        with pa.ipc.new_file(self._folder / f"lists_{partition}.arrow", whole.schema) as writer:
            writer.write_table(whole, max_chunksize=max(1, ROWS_WAITING // self._num_partitions))

    def close(self) -> None:
        """Removes the partitions."""
        for writer in self._writers.values():
            writer.close()
        shutil.rmtree(self._folder, ignore_errors=True)


class HistoryReader:
    """Reads lists in the order of the rows, from partitions that each are in that order.

    Args:
        histories: the histories.
        files: files of the partitions.
    """

    def __init__(self, histories: tuple[History, ...], files: list[Path]) -> None:
        self._histories, self._next_row = histories, 0
        self._streams = [_batches(file) for file in files]
        self._waiting: list[pa.Table | None] = [next(stream, None) for stream in self._streams]

    def take(self, num_rows: int) -> dict[str, tuple[Array, Array]]:
        """Returns ids and offsets of each history for the next rows."""
        if not num_rows:
            return {each.name: (np.empty(0, np.int64), np.zeros(1, np.int64)) for each in self._histories}
        stop, pieces = self._next_row + num_rows, []
        for number, stream in enumerate(self._streams):
            while (table := self._waiting[number]) is not None:
                here = int(np.searchsorted(table["row"].to_numpy(), stop))
                pieces.append(table.slice(0, here))
                if here < table.num_rows:
                    self._waiting[number] = table.slice(here)
                    break
                self._waiting[number] = next(stream, None)
        self._next_row = stop
        whole = pa.concat_tables(pieces).sort_by("row").combine_chunks() if pieces else None
        if whole is None or whole.num_rows != num_rows:
            raise RuntimeError("more rows were read than were added")
        lists = {each.name: whole[each.name].chunk(0) for each in self._histories}
        return {
            name: (array.flatten().to_numpy(), (array.offsets.to_numpy() - array.offsets[0].as_py()))
            for name, array in lists.items()
        }


def _batches(file: Path) -> Iterator[pa.Table]:
    with pa.ipc.open_file(file) as opened:
        for number in range(opened.num_record_batches):
            yield pa.Table.from_batches([opened.get_batch(number)])
