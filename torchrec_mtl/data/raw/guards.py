"""What tells that a data set is not what it seems to be."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from torchrec_mtl.data.encoders import find
from torchrec_mtl.data.lists import Array

SUSPICIOUS_AUC = 0.9
MIN_POSITIVES = 20  # below that an AUC says nothing
PRIOR_ROWS = 20.0  # what an id's rate is smoothed with
HASH_RANGES = 16  # of hashes, in memory one after the other


class Duplicates:
    """Counts rows that are the same by the hashes of what makes them so, kept in files of 8 bytes a row.

    Args:
        folder: where the files go; it is made.

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
        """Some rows, uint64, of "train" or "test"."""
        with self._files[split].open("ab") as file:
            hashes.tofile(file)

    def count(self) -> tuple[int, int]:
        """Rows of train that repeat an earlier one, and rows of test that are in train."""
        train, test = (np.memmap(file, np.uint64, "r") for file in self._files.values())
        repeated = common = 0
        for part in range(HASH_RANGES):
            ordered, sought = (np.sort(hashes[hashes % HASH_RANGES == part]) for hashes in (train, test))
            repeated += int((ordered[1:] == ordered[:-1]).sum())
            common += int((find(ordered, sought) >= 0).sum())
        return repeated, common


class LeakCheck:
    """Does a field alone predict a label too well? Its ids' rates in train, as a score of the rows of valid.

    Of a multi-valued field the first id of a row is looked at.

    Args:
        num_embeddings: field -> number of its codes.
        labels: the columns of the labels.
    """

    def __init__(self, num_embeddings: Mapping[str, int], labels: Sequence[str]) -> None:
        self._fields, self._labels = tuple(num_embeddings), tuple(labels)
        self._counts = {
            (split, field): np.zeros((1 + len(self._labels), size), np.int64)  # rows, and positives of each label
            for split in ("train", "valid")
            for field, size in num_embeddings.items()
        }

    def add(self, split: str, rows: pl.DataFrame) -> None:
        """Encoded rows; those of other splits than train and valid are left out."""
        if split not in ("train", "valid"):
            return
        happened = [rows[label].to_numpy() == 1 for label in self._labels]
        for field in self._fields:
            codes, counts = _first_codes(rows[field]), self._counts[split, field]
            np.add.at(counts[0], codes, 1)
            for of_label, positive in zip(counts[1:], happened, strict=True):
                np.add.at(of_label, codes[positive], 1)

    def aucs(self) -> dict[tuple[str, str], float]:
        """(field, label) -> AUC on valid; NaN where there are too few positives or no negatives."""
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
    """AUC of rates in ``train`` as scores in ``valid``, rows of one code being ties."""
    rate = train[label].sum() / max(1, train[0].sum())
    scores = (train[label] + PRIOR_ROWS * rate) / (train[0] + PRIOR_ROWS)
    distinct, groups = np.unique(scores, return_inverse=True)
    positives = np.bincount(groups, valid[label], len(distinct))
    negatives = np.bincount(groups, valid[0] - valid[label], len(distinct))
    if positives.sum() < MIN_POSITIVES or not negatives.sum():
        return float("nan")
    below = negatives.cumsum() - negatives / 2
    return float((positives * below).sum() / (positives.sum() * negatives.sum()))
