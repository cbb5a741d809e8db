"""Generates raw files of any size in the format of Ali-CCP, with known click and purchase probabilities.

Labels follow a `SyntheticFunnel` over 18 single-valued fields and the list 210; the four histories ``*_14`` and the
values of features are noise. Field sizes are the published ones, scaled to the number of rows; ids follow a power law.
Rows come in groups with the same common features. The click rate drifts from the first row of train to the last of
test.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
import polars as pl

from tests.generators import RAW_CSV, add_drift, scale_sizes
from tests.generators.ali_ccp_lines import HISTORIES, HISTORY_IDS, USER_FIELDS, RawLines
from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.raw.hashes import mix
from torchrec_mtl.datasets.ali_ccp import published
from torchrec_mtl.datasets.ali_ccp.layout import RAW_SPLITS
from torchrec_mtl.datasets.synthetic.funnel import SyntheticFunnel
from torchrec_mtl.datasets.synthetic.prepare import rank_auc
from torchrec_mtl.errors import InputError, check_at_least, check_share

PUBLISHED_ROWS = published.NUM_ROWS["train"] + published.NUM_ROWS["valid"]
# The first six interact in pairs, a field of the user with one of the item. The last one, 101, groups rows.
FIELDS = (
    *("121", "206", "124", "301", "125", "508"),
    *("122", "126", "127", "128", "129", "205", "207", "216", "509", "702", "853", "101"),
)
ITEM_FIELDS = tuple(field for field in FIELDS if field not in USER_FIELDS)
GROUPS_AT_ONCE = 1000


@dataclass(frozen=True)
class AliCcpGenerator:
    """Writes the four raw files, and the rows' probabilities as ``truth_{train,test}.parquet``.

    Args:
        num_rows: number of rows of "train" and "test".
        base_rates: shares of clicks and purchases among all rows.
        rows_per_group: mean number of rows with the same common features.
        history_length: mean number of ids in each of the four histories.
        drift: amount by which the logit of a click falls from the first row to the last.
        broken_rate: share of rows with a purchase and no click.
        repeat_rate: share of rows with the same features as the row before.
        first_id: smallest id.
        seed: seed of all random draws.

    Raises:
        InputError: if a number is out of range.

    Example::

        >>> import tempfile
        >>> folder = AliCcpGenerator({"train": 300, "test": 200}, base_rates=(0.3, 0.1)).write(tempfile.mkdtemp())
        >>> sorted(file.name for file in folder.iterdir())[:2]
        ['common_features_test.csv', 'common_features_train.csv']
        >>> 0.5 < oracle_auc(folder)["click"] < 1
        True
    """

    num_rows: Mapping[str, int]
    base_rates: tuple[float, float] = (0.0389, 0.00021)
    rows_per_group: int = 58
    history_length: int = 100
    drift: float = 0.2
    broken_rate: float = 5.4e-6
    repeat_rate: float = 0.05
    first_id: int = 31_319
    seed: int = 0

    def __post_init__(self) -> None:
        if set(self.num_rows) != set(RAW_SPLITS) or min(self.num_rows.values()) < 1:
            raise InputError(f"`num_rows` (={dict(self.num_rows)}) must give {list(RAW_SPLITS)} at least 1 row each")
        check_at_least(
            1, rows_per_group=self.rows_per_group, history_length=self.history_length, first_id=self.first_id
        )
        check_at_least(0, seed=self.seed)
        check_share(broken_rate=self.broken_rate, repeat_rate=self.repeat_rate)

    @cached_property
    def funnel(self) -> SyntheticFunnel:
        """The funnel that labels follow."""
        share = self.num_rows["train"] / PUBLISHED_ROWS
        sizes = scale_sizes((published.NUM_EMBEDDINGS[field] - 1 for field in FIELDS), share)
        return SyntheticFunnel(self.base_rates, sizes, list_size=max(40, round(50_000 * share)), seed=self.seed)

    @cached_property
    def _lines(self) -> RawLines:
        """The writer of lines; no two fields share an id."""
        sizes = [field.num_embeddings for field in self.funnel.schema.fields]
        names = [*FIELDS, "210"]
        first_ids = {name: self.first_id + sum(sizes[:position]) for position, name in enumerate(names)}
        first_ids |= {
            name: self.first_id + sum(sizes) + HISTORY_IDS * position for position, name in enumerate(HISTORIES)
        }
        return RawLines(first_ids, self.history_length)

    def write(self, directory: str | Path) -> Path:
        """Writes the files into ``directory``, which is created, and returns it."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for split in RAW_SPLITS:
            with (
                (directory / f"common_features_{split}.csv").open("wb") as common,
                (directory / f"sample_skeleton_{split}.csv").open("wb") as skeleton,
            ):
                truth = pl.concat(list(self._write_groups(split, common, skeleton)))
            truth.write_parquet(directory / f"truth_{split}.parquet")
        return directory

    def _write_groups(self, split: str, common: IO[bytes], skeleton: IO[bytes]) -> Iterator[pl.DataFrame]:
        """Writes the rows, and yields their probabilities, some groups at a time."""
        done, piece = 0, 0
        while done < self.num_rows[split]:
            rng = np.random.default_rng([self.seed, RAW_SPLITS.index(split), piece])
            lengths = rng.geometric(1 / self.rows_per_group, GROUPS_AT_ONCE)
            groups = np.repeat(np.arange(GROUPS_AT_ONCE), lengths)[: self.num_rows[split] - done]
            num_groups = int(groups[-1]) + 1
            draws = [int(draw) for draw in rng.integers(2**31, size=2)]
            users = self.funnel.sample(num_groups, draws[0]).rename(self._names).select(USER_FIELDS)
            items = self.funnel.sample(len(groups), draws[1]).rename(self._names).select(*ITEM_FIELDS, "list")
            items = items[self._repeat_rows(rng, groups)]
            keys = self._keys(split, piece, num_groups)
            position = (RAW_SPLITS.index(split) + (done + np.arange(len(groups))) / self.num_rows[split]) / 2
            truth = self._truth(rng, items.hstack(users[groups]), position, first_sample=done + 1)
            self._lines.common(rng, users, keys).write_csv(common, **RAW_CSV)
            columns = [truth["sample_id"], truth["click"], truth["purchase"], keys.gather(groups)]
            self._lines.skeleton(rng, items, columns).write_csv(skeleton, **RAW_CSV)
            yield truth
            done, piece = done + len(groups), piece + 1

    @property
    def _names(self) -> dict[str, str]:
        return {f"field_{position}": field for position, field in enumerate(FIELDS, 1)}

    def _repeat_rows(self, rng: np.random.Generator, groups: Array) -> Array:
        """Returns which row each row takes its features from: mostly itself, or an earlier one of its group."""
        rows = np.arange(len(groups))
        repeats = (rng.random(len(groups)) < self.repeat_rate) & (np.diff(groups, prepend=-1) == 0)
        return np.maximum.accumulate(np.where(repeats, 0, rows))

    def _keys(self, split: str, piece: int, num_groups: int) -> pl.Series:
        """Returns distinct keys of groups: SplitMix64 is one to one."""
        numbers = (RAW_SPLITS.index(split) << 40) + piece * GROUPS_AT_ONCE + np.arange(num_groups)
        return pl.Series([f"{key:016x}" for key in mix(numbers, self.seed).tolist()])

    def _truth(self, rng: np.random.Generator, rows: pl.DataFrame, position: Array, first_sample: int) -> pl.DataFrame:
        """Draws the labels, and returns them with their marginal probabilities."""
        rows = rows.rename({field: name for name, field in self._names.items()})
        click, purchase = self.funnel.conditional_probabilities(rows).T
        click = add_drift(click, self.drift, position)
        clicked = rng.random(len(click)) < click
        bought = clicked & (rng.random(len(click)) < purchase)
        broken = rng.random(len(click)) < self.broken_rate
        return pl.DataFrame(
            {
                "sample_id": first_sample + np.arange(len(click)),
                "click": (clicked & ~broken).astype(np.int8),
                "purchase": (bought | broken).astype(np.int8),
                "p_click": click,
                "p_purchase": click * purchase,
            }
        )


def oracle_auc(directory: str | Path) -> dict[str, float]:
    """Returns the AUC of the true probabilities on the test rows, without rows with a purchase and no click."""
    truth = pl.read_parquet(Path(directory) / "truth_test.parquet").filter(pl.col("purchase") <= pl.col("click"))
    return {task: rank_auc(truth[f"p_{task}"], truth[task]) for task in ("click", "purchase")}
