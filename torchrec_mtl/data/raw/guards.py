"""Checks for faults of a data set: duplicate rows, and fields that leak a label."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from torchrec_mtl.data.lists import Array, find

SUSPICIOUS_AUC = 0.9
MIN_POSITIVES = 20  # with fewer, an AUC says nothing
PRIOR_ROWS = 20.0  # rows at the mean rate that smooth the rate of an id
NUM_PARTS = 16  # hashes are divided into parts, one of which is in memory at a time


class Duplicates:
    """Counts duplicate rows by their hashes, which are kept in files of 8 bytes per row.

    Args:
        folder: folder for the files, which is created.

    Example::

        >>> import tempfile
        >>> duplicates = Duplicates(Path(tempfile.mkdtemp()) / "hashes")
        >>> duplicates.add("train", np.array([3, 5, 3, 3], np.uint64))
        >>> duplicates.add("test", np.array([5, 5, 7], np.uint64))
        >>> duplicates.count()
        (2, 2)
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._files = {split: folder / split for split in ("train", "test")}

    def add(self, split: str, hashes: Array) -> None:
        """Adds the hashes (uint64) of rows of "train" or "test"."""
        with self._files[split].open("ab") as file:
            hashes.tofile(file)

    def count(self) -> tuple[int, int]:
        """Returns the number of rows of train that repeat an earlier one, and of rows of test that occur in train."""
        train, test = (np.memmap(file, np.uint64, "r") for file in self._files.values())
        repeated = common = 0
        for part in range(NUM_PARTS):
            train_part, test_part = (np.sort(hashes[hashes % NUM_PARTS == part]) for hashes in (train, test))
            repeated += int((train_part[1:] == train_part[:-1]).sum())
            common += int((find(train_part, test_part) >= 0).sum())
        return repeated, common


class LeakCheck:
    """Measures how well each field alone predicts each label.

    The rate of an id in train is the score of its rows in valid. Of a multi-valued field, only the first id of a row
    counts.

    Args:
        num_embeddings: number of codes of each field.
        labels: label columns.
    """

    def __init__(self, num_embeddings: Mapping[str, int], labels: Sequence[str]) -> None:
        self._fields, self._labels = tuple(num_embeddings), tuple(labels)
        self._counts = {
            (split, field): np.zeros((1 + len(self._labels), size), np.int64)  # rows, and positives of each label
            for split in ("train", "valid")
            for field, size in num_embeddings.items()
        }

    def add(self, split: str, rows: pl.DataFrame) -> None:
        """Adds encoded rows; only "train" and "valid" count."""
        if split not in ("train", "valid"):
            return
        positives = [rows[label].to_numpy() == 1 for label in self._labels]
        for field in self._fields:
            codes, counts = _first_codes(rows[field]), self._counts[split, field]
            np.add.at(counts[0], codes, 1)
            for label_counts, positive in zip(counts[1:], positives, strict=True):
                np.add.at(label_counts, codes[positive], 1)

    def aucs(self) -> dict[tuple[str, str], float]:
        """Returns the AUC on valid by field and label; NaN where there are too few positives or no negatives."""
        return {
            (field, label): _grouped_auc(self._counts["train", field], self._counts["valid", field], 1 + position)
            for field in self._fields
            for position, label in enumerate(self._labels)
        }


def _first_codes(codes: pl.Series) -> Array:
    if isinstance(codes.dtype, pl.List):
        codes = codes.list.get(0, null_on_oob=True).fill_null(0)
    return codes.to_numpy()


def _grouped_auc(train: Array, valid: Array, label: int) -> float:
    """Returns the AUC in ``valid`` of rates in ``train`` as scores; rows with the same code are ties."""
    rate = train[label].sum() / max(1, train[0].sum())
    scores = (train[label] + PRIOR_ROWS * rate) / (train[0] + PRIOR_ROWS)
    distinct, groups = np.unique(scores, return_inverse=True)
    positives = np.bincount(groups, valid[label], len(distinct))
    negatives = np.bincount(groups, valid[0] - valid[label], len(distinct))
    if positives.sum() < MIN_POSITIVES or not negatives.sum():
        return float("nan")
    below = negatives.cumsum() - negatives / 2
    return float((positives * below).sum() / (positives.sum() * negatives.sum()))
