"""What tells that a data set is not what it seems to be."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from torchrec_mtl.data.ali_ccp.common import Columns
from torchrec_mtl.data.ali_ccp.layout import LABELS
from torchrec_mtl.data.checks import Array
from torchrec_mtl.data.raw.files import RawFile
from torchrec_mtl.errors import InputError

SUSPICIOUS_AUC = 0.9
MIN_POSITIVES = 20  # below that an AUC says nothing
PRIOR_ROWS = 20.0  # what an id's rate is smoothed with


def check_label_order(file: RawFile, tally: Counter[str]) -> None:
    """InputError if purchases are more frequent than clicks: somebody has changed the order of the columns."""
    if tally["purchases"] > tally["clicks"]:
        told = f"purchases ({tally['purchases']}) must be rarer than clicks ({tally['clicks']})"
        raise InputError(f"{file}: {told}; the columns must be sample_id, click, purchase, ...")


def count_duplicates(train: Array, test: Array) -> tuple[int, int]:
    """Train rows that repeat an earlier one, and test rows that are in train, by the hashes of all their features.

    Example::

        >>> count_duplicates(np.array([3, 5, 3, 3]), np.array([5, 5, 7]))
        (2, 2)
    """
    ordered = np.sort(train)
    repeated = int((ordered[1:] == ordered[:-1]).sum())
    sought = np.sort(test)
    places = np.minimum(ordered.searchsorted(sought), len(ordered) - 1)
    return repeated, int((ordered[places] == sought).sum())


class LeakCheck:
    """Does a field alone predict a label too well? Its ids' rates in train, as a score of the rows of valid.

    Of a multi-valued field the first id of a row is looked at.

    Args:
        num_embeddings: field -> number of its codes.
        labels: the columns of the labels.
    """

    def __init__(self, num_embeddings: Mapping[str, int], labels: Sequence[str] = LABELS) -> None:
        self._labels = tuple(labels)
        self._counts = {
            (split, field): np.zeros((1 + len(self._labels), size), np.int64)  # rows, and positives of each label
            for split in ("train", "valid")
            for field, size in num_embeddings.items()
        }

    def add(self, split: str, rows: pl.DataFrame, columns: Columns) -> None:
        """Encoded rows; those of other splits than train and valid are left out."""
        if split not in ("train", "valid"):
            return
        happened = [rows[label].to_numpy() == 1 for label in self._labels]
        for field in columns.fields:
            codes, counts = columns.first_codes(rows, field), self._counts[split, field]
            np.add.at(counts[0], codes, 1)
            for of_label, positive in zip(counts[1:], happened, strict=True):
                np.add.at(of_label, codes[positive], 1)

    def aucs(self) -> dict[tuple[str, str], float]:
        """(field, label) -> AUC on valid; NaN where there are too few positives or no negatives."""
        fields = [field for split, field in self._counts if split == "train"]
        return {
            (field, label): _grouped_auc(self._counts["train", field], self._counts["valid", field], 1 + position)
            for field in fields
            for position, label in enumerate(self._labels)
        }


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
