"""Which id has which row of a table, for ids without a vocabulary.

TorchRec's `MCHManagedCollisionModule` keeps the ids of a rank's rows together, so who is evicted depends on the number
of ranks, and rows cannot move to another number. Here a table is cut into buckets, and what happens in a bucket depends
on nothing outside it. A rank has whole buckets.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torchrec.modules.mc_modules import ManagedCollisionModule

from torchrec_mtl.errors import InputError, check_at_least, check_choice
from torchrec_mtl.modules.eviction import EVICTIONS, Eviction, best_by_bucket, least_worthy, worth
from torchrec_mtl.modules.id_hash import ANY_ID, unhash_ids


def check_num_rows(name: str, num_rows: int, buckets: int) -> None:
    """Raises `InputError` unless so many rows can be cut into buckets."""
    if num_rows % buckets or num_rows < 2 * buckets:
        near = max(2, -(-num_rows // buckets)) * buckets
        rule = f"must be a multiple of `buckets` (={buckets}), with two rows for each, such as {near}"
        raise InputError(f"`num_rows` (={num_rows}) of {name} {rule}")


class RowAssignment(ManagedCollisionModule):
    """Gives each id of a table a row, which no other id has, and takes it back when another id is worth more.

    Ids are counted in every batch of training, and get rows after every ``interval`` batches, before the last of them
    is looked up. An id of bucket ``hashed id mod buckets`` gets one of that bucket's rows, except the last one, which
    all ids without a row share.

    Args:
        name: name of the table.
        num_rows: rows of the whole table, a multiple of ``buckets``.
        eviction: whose row a new id gets when none is free, if the new id is worth more: ``"lfu"``, of the id that was
            seen the fewest times; ``"lru"``, of the id that was last seen the longest time ago; ``"distance_lfu"``, of
            the id with the fewest times seen divided by ``(batches since it was last seen + 1) ^ decay``; ``"none"``,
            nobody's. Between equals, the id that has the row keeps it.
        interval: number of batches between two times that ids get rows.
        buckets: number of parts that the table is cut into; the number of ranks must divide it.
        decay: exponent of ``"distance_lfu"``.
        device: device of the state.
        rows_here: first and last + 1 of the rows that are here; all rows by default.

    Attributes:
        hashed_ids: the hashed id of each row here, int64 ``[rows]``; `ANY_ID` if there is none.

    Raises:
        InputError: if a value is out of its range.
    """

    hashed_ids: Tensor
    _current_iter_tensor: Tensor

    def __init__(
        self,
        name: str,
        num_rows: int,
        *,
        eviction: Eviction = "lfu",
        interval: int = 10,
        buckets: int = 32,
        decay: float = 1.0,
        device: torch.device | None = None,
        rows_here: tuple[int, int] | None = None,
    ) -> None:
        check_choice("eviction", eviction, EVICTIONS)
        check_at_least(1, interval=interval, buckets=buckets)
        check_at_least(0, decay=decay)
        check_num_rows(name, num_rows, buckets)
        super().__init__(device or torch.get_default_device(), output_segments=[0, num_rows])
        self.name, self.num_rows, self.eviction, self.interval = name, num_rows, eviction, interval
        self.num_buckets, self.decay, self.bucket_size = buckets, decay, num_rows // buckets
        self.first_row, last = rows_here or (0, num_rows)
        self.num_rows_here = last - self.first_row
        buffers = {"hashed_ids": ANY_ID}
        if eviction != "lru":
            buffers["counts"] = 0
        if eviction in ("lru", "distance_lfu"):
            buffers["last_seen"] = 0
        for buffer, of_free_row in buffers.items():
            self.register_buffer(buffer, torch.full((self.num_rows_here,), of_free_row, device=self.device))
        for derived in ("_sorted_ids", "_sorted_rows"):
            self.register_buffer(derived, torch.empty(0, dtype=torch.int64, device=self.device), persistent=False)
        self.iteration = 0
        self._pending: list[tuple[int, Tensor]] = []  # batch and ids, since ids last got rows
        self._evicted: list[Tensor] = []
        self.validate_state()

    def validate_state(self) -> None:
        """Makes what follows from the state; TorchRec calls it after the state was loaded."""
        if self.hashed_ids.is_meta:
            return
        self.iteration = int(self._current_iter_tensor)
        rows = torch.nonzero(self.hashed_ids != ANY_ID).flatten()
        # ends with a row that is shared, so that a search always finds something
        self._sorted_ids, order = torch.cat([self.hashed_ids[rows], rows.new_full((1,), ANY_ID)]).sort()
        rows = torch.cat([rows, rows.new_full((1,), self.num_rows_here - 1)])
        self._sorted_rows = rows[order] + self.first_row

    @property
    def buckets_here(self) -> range:
        """The numbers of the buckets that are here."""
        return range(self.first_row // self.bucket_size, (self.first_row + self.num_rows_here) // self.bucket_size)

    def ids(self) -> Tensor:
        """The id of each row here, ``-1 - bucket`` for the rows that are shared, and `ANY_ID` for free ones."""
        ids = unhash_ids(self.hashed_ids)
        ids[self.bucket_size - 1 :: self.bucket_size] = -1 - torch.tensor(self.buckets_here, device=ids.device)
        return ids

    def count(self, ids: Tensor) -> None:
        """Counts the hashed ids of a batch; at the end of an interval, gives them rows."""
        self.iteration += 1
        self._current_iter_tensor += 1
        self._pending.append((self.iteration, ids))
        if self.iteration % self.interval == 0:
            self._give_rows()

    def take_evicted(self) -> Tensor | None:
        """The rows that since the last call were taken from one id and given to another, in rising order."""
        evicted, self._evicted = self._evicted, []
        return torch.cat(evicted).unique() if evicted else None

    def rows_of(self, hashed: Tensor) -> Tensor:
        """The row of each hashed id in the whole table: its own, or the one that ids of its bucket share."""
        place = torch.searchsorted(self._sorted_ids, hashed)
        shared = hashed.remainder(self.num_buckets).mul_(self.bucket_size).add_(self.bucket_size - 1)
        return torch.where(self._sorted_ids[place] == hashed, self._sorted_rows[place], shared)

    def pending(self) -> dict[int, Tensor]:
        """What was counted since ids last got rows: hashed ids and batches ``[2, N]`` of each bucket."""
        if not self._pending:
            return {}
        both = torch.stack(self._pending_ids())
        buckets, order = both[0].remainder(self.num_buckets).sort(stable=True)
        numbers, sizes = buckets.unique_consecutive(return_counts=True)
        parts = both[:, order].split(sizes.tolist(), dim=1)
        return {number: part.contiguous() for number, part in zip(numbers.tolist(), parts, strict=True)}

    def restore_pending(self, of_buckets: Mapping[int, Tensor]) -> None:
        """Continues from what `pending` returned, on these or other ranks."""
        self._pending = []
        for ids, batches in of_buckets.values():
            self._pending += [(batch, ids[batches == batch].to(self.device)) for batch in batches.unique().tolist()]

    def _pending_ids(self) -> tuple[Tensor, Tensor]:
        """All pending ids and the batches that they came in, ``[N]`` each."""
        batches, ids = zip(*self._pending, strict=True)
        sizes = torch.tensor([len(each) for each in ids], device=ids[0].device)
        return torch.cat(ids), torch.tensor(batches, device=ids[0].device).repeat_interleave(sizes)

    def _seen(self) -> dict[str, Tensor]:
        """The different pending ids, rising, with their counts or the last batch of each, as eviction needs them."""
        ids, batches = self._pending_ids()
        self._pending = []
        if "last_seen" in self._buffers:
            unique, inverse, counts = ids.unique(return_inverse=True, return_counts=True)
            last_seen = torch.zeros_like(unique).scatter_reduce_(0, inverse, batches, "amax")
        else:
            unique, counts = ids.unique(return_counts=True)
            last_seen = counts
        seen = {"hashed_ids": unique, "counts": counts, "last_seen": last_seen}
        is_id = unique != ANY_ID
        return {name: seen[name][is_id] for name in seen if name in self._buffers}

    def _of_rows(self, name: str) -> Tensor:
        values: Tensor = getattr(self, name)
        return values

    def _worth(self, ids: Mapping[str, Tensor]) -> Tensor:
        return worth(self.eviction, self.iteration, self.decay, ids.get("counts"), ids.get("last_seen"))

    @torch.no_grad()
    def _give_rows(self) -> None:
        seen = self._seen()
        place = torch.searchsorted(self._sorted_ids, seen["hashed_ids"])
        known = self._sorted_ids[place] == seen["hashed_ids"]
        rows = self._sorted_rows[place[known]] - self.first_row
        if "counts" in seen:
            self._of_rows("counts")[rows] += seen["counts"][known]
        if "last_seen" in seen:
            self._of_rows("last_seen")[rows] = seen["last_seen"][known]
        new = {name: values[~known] for name, values in seen.items()}
        if not len(new["hashed_ids"]):
            return
        of_new = self._worth(new)
        buckets = new["hashed_ids"].remainder(self.num_buckets) - self.buckets_here[0]
        chosen, buckets, place = best_by_bucket(of_new, buckets, self.bucket_size - 1)
        of_rows = self._worth_of_rows()
        columns = least_worthy(of_rows, int(place.max()) + 1)[buckets, place]
        gains = of_new[chosen] > of_rows[buckets, columns]
        self._exchange(
            (buckets * self.bucket_size + columns)[gains], {name: values[chosen[gains]] for name, values in new.items()}
        )

    def _worth_of_rows(self) -> Tensor:
        """The worth of the ids of rows ``[buckets here, bucket size]``: of free rows -1, of shared rows infinity."""
        is_free = self.hashed_ids == ANY_ID
        if self.eviction == "none":
            of_rows = torch.full_like(self.hashed_ids, torch.inf, dtype=torch.float64)
        else:
            of_rows = self._worth(
                {name: self._of_rows(name) for name in ("counts", "last_seen") if name in self._buffers}
            )
        of_rows = of_rows.masked_fill_(is_free, -1.0).view(-1, self.bucket_size)
        of_rows[:, -1] = torch.inf
        return of_rows

    def _exchange(self, rows: Tensor, new: Mapping[str, Tensor]) -> None:
        """Gives ``rows`` here to new ids."""
        before = self.hashed_ids[rows]
        was_taken = before != ANY_ID
        for name, values in new.items():
            self._of_rows(name)[rows] = values
        if was_taken.any():
            self._evicted.append(rows[was_taken] + self.first_row)
        stays = torch.ones_like(self._sorted_ids, dtype=torch.bool)
        stays[torch.searchsorted(self._sorted_ids, before[was_taken])] = False
        ids, of_ids = self._sorted_ids[stays], self._sorted_rows[stays]
        added, order = new["hashed_ids"].sort()  # merged: faster than to sort all ids
        place = torch.searchsorted(ids, added) + torch.arange(len(added), device=added.device)
        is_old = torch.ones(len(ids) + len(added), dtype=torch.bool, device=added.device)
        is_old[place] = False
        self._sorted_ids, self._sorted_rows = (
            torch.empty_like(is_old, dtype=torch.int64).masked_scatter_(is_old, old).index_put_((place,), values)
            for old, values in ((ids, added), (of_ids, rows[order] + self.first_row))
        )
