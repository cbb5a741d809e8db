"""Prepares a data set from a synthetic funnel, and computes the AUC of its true probabilities."""

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from torchrec_mtl.argument_types import checked
from torchrec_mtl.data.schema import SPLITS, Schema
from torchrec_mtl.data.writer import build_once, write_parquet
from torchrec_mtl.datasets.synthetic.funnel import SyntheticFunnel
from torchrec_mtl.errors import InputError

NUM_ROWS = {"train": 200_000, "valid": 50_000, "test": 100_000}


@checked
def prepare_synthetic(
    directory: str | Path, funnel: SyntheticFunnel | None = None, num_rows: Mapping[str, int] = NUM_ROWS
) -> Path:
    """Prepares ``<directory>/synthetic-<digest of the arguments>``, unless it is prepared already.

    Besides the columns of the schema, the files have the columns ``p_<task>`` of `SyntheticFunnel.sample`.

    Args:
        directory: parent folder of prepared data sets.
        funnel: funnel to sample; ``SyntheticFunnel()`` by default.
        num_rows: number of rows of "train", "valid" and "test", each drawn from another seed.

    Returns:
        The folder of the data set.

    Raises:
        InputError: if ``num_rows`` does not name these three splits, or a number is below 1.

    Example::

        >>> import tempfile
        >>> funnel = SyntheticFunnel(base_rates=(0.4, 0.1), field_sizes=(50, 10, 20), num_pairs=1)
        >>> directory = prepare_synthetic(tempfile.mkdtemp(), funnel, {"train": 200, "valid": 200, "test": 2000})
        >>> Schema.load(directory).num_rows["test"]
        2000
        >>> for key in oracle_auc(directory):
        ...     print(*key, sep=", ")
        step_1, impressions, auc
        step_2, impressions, auc
        step_2, after step_1, conditional_auc
        step_2, after step_1, marginal_auc
    """
    funnel = funnel or SyntheticFunnel()
    if set(num_rows) != set(SPLITS):
        raise InputError(f"`num_rows` (={dict(num_rows)}) must give the rows of {list(SPLITS)}")

    def build(folder: Path) -> Schema:
        for seed, split in enumerate(SPLITS):
            write_parquet(funnel.sample(num_rows[split], seed), folder / f"{split}.parquet")
        return funnel.schema

    digest = hashlib.sha256(repr((funnel, [num_rows[split] for split in SPLITS])).encode()).hexdigest()[:8]
    return build_once(Path(directory) / f"synthetic-{digest}", build)


@checked
def oracle_auc(directory: str | Path, split: str = "test") -> dict[tuple[str, str, str], float]:
    """Returns the AUCs of the true probabilities on a split of `prepare_synthetic`, by task, sample space and name.

    They are the AUCs that `MultiTaskMetrics` gives a model without error, under the names of `measured_as`. No model
    beats them except by chance, which matters less the more rows there are; but after a step, that holds only for
    ``conditional_auc``: the marginal probability is not the best score there. An AUC is NaN if one of the classes has
    no row.

    Args:
        directory: folder of the data set.
        split: name of the split.

    Raises:
        InputError: if ``directory`` is not a prepared data set, or has no probabilities, or ``split`` is unknown.
    """
    if split not in SPLITS:
        raise InputError(f"`split` (={split!r}) must be one of {list(SPLITS)}")
    tasks = Schema.load(directory).tasks
    file = Path(directory) / f"{split}.parquet"
    columns = pl.scan_parquet(file, glob=False)
    for task in tasks:
        if f"p_{task}" not in columns.collect_schema():
            raise InputError(f"{file}: column 'p_{task}' is missing, so its probabilities are not known")
    rows = columns.collect()
    aucs = {}
    for task in tasks:
        marginal = pl.col(f"p_{task}")
        aucs[task, "impressions", "auc"] = rank_auc(rows.select(marginal).to_series(), rows[task])
        for space in tasks.spaces(task)[1:]:
            before = space.removeprefix("after ")
            kept = rows.filter(pl.col(before) == 1)
            for name, score in (("conditional_auc", marginal / pl.col(f"p_{before}")), ("marginal_auc", marginal)):
                aucs[task, space, name] = rank_auc(kept.select(score).to_series(), kept[task])
    return aucs


def rank_auc(scores: pl.Series, labels: pl.Series) -> float:
    """Returns the AUC from the rank sum of the positives; ties have their average rank."""
    positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
    if not (positives and negatives):
        return math.nan
    above = scores.rank("average").filter(labels == 1).to_numpy().sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))
