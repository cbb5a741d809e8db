"""The assignment of rows to ids, as TorchRec's managed collision calls it."""

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import JaggedTensor

from torchrec_mtl.modules.id_hash import ANY_ID
from torchrec_mtl.modules.row_assignment import RowAssignment

Features = dict[str, JaggedTensor]


class ZeroCollisionRows(RowAssignment):
    """Replaces hashed ids by the rows that `RowAssignment` gives them; its arguments are those of that class."""

    def preprocess(self, features: Features) -> Features:
        """Nothing: the collection hashes the ids, as TorchRec would lose their weights."""
        return features

    def profile(self, features: Features) -> Features:
        """Counts ids, and at the end of an interval gives them rows."""
        if self.training:
            self.count(torch.cat([feature.values() for feature in features.values()]))
        return features

    def remap(
        self, features: Features, mutate_miss_lengths: bool = True, write_weights: Tensor | None = None
    ) -> Features:
        """Replaces hashed ids by rows of the whole table."""
        return {
            key: JaggedTensor(
                values=self.rows_of(feature.values()),
                lengths=feature.lengths(),
                offsets=feature.offsets(),
                weights=feature.weights_or_none(),
            )
            for key, feature in features.items()
        }

    def forward(self, features: Features, mutate_miss_lengths: bool = True) -> Features:
        """`profile`, then `remap`."""
        return self.remap(self.profile(features))

    def evict(self) -> Tensor | None:
        """The rows that since the last call were taken from one id and given to another, in rising order."""
        return self.take_evicted()

    def output_size(self) -> int:
        """Number of rows here."""
        return self.num_rows_here

    def input_size(self) -> int:
        """0, for which TorchRec sends an id to the rank of bucket ``hashed id mod buckets``."""
        return 0

    def buckets(self) -> int:
        """Number of buckets of the whole table."""
        return self.num_buckets

    def open_slots(self) -> Tensor:
        """Number of free rows here, ``[1]``."""
        shared = self.num_rows_here // self.bucket_size
        return (self.hashed_ids == ANY_ID).sum().reshape(1) - shared

    def rebuild_with_output_id_range(
        self, output_id_range: tuple[int, int], output_segments: list[int], device: torch.device | None = None
    ) -> "ZeroCollisionRows":
        """The module of a rank that has these rows."""
        return ZeroCollisionRows(
            self.name,
            self.num_rows,
            eviction=self.eviction,
            interval=self.interval,
            buckets=self.num_buckets,
            decay=self.decay,
            device=device or self.device,
            rows_here=output_id_range,
        )

    def initial_values(self, rows: Tensor, like: Tensor, init_fn: Callable[[Tensor], object], seed: int) -> Tensor:
        """Values ``[R, D]`` for rows that change hands at this iteration, the same on any number of ranks.

        Args:
            rows: rows of the whole table ``[R]``, rising.
            like: the table, whose width, type and device the values have.
            init_fn: function that fills a tensor on the CPU.
            seed: seed of the run.
        """
        numbers, sizes = (rows // self.bucket_size).unique_consecutive(return_counts=True)
        values = torch.empty(len(rows), like.shape[1])
        with torch.random.fork_rng(devices=[]):
            for number, part in zip(numbers.tolist(), values.split(sizes.tolist()), strict=True):
                digest = hashlib.sha256(f"{seed}/{self.name}/{number}/{self.iteration}".encode()).digest()
                torch.default_generator.manual_seed(int.from_bytes(digest[:7], "big"))
                init_fn(part)
        return values.to(like)
