"""Generates raw files of any size in the format of TaoBao's display ads, with known click and purchase probabilities.

Labels follow a `SyntheticFunnel` over the single-valued fields: a user has one profile, an ad has one category, brand
and so on, and users and ads follow a power law. Field sizes are the published ones, scaled to the number of rows. A
purchase is a row of the behaviour log within a day after its click; other rows of the log are noise, and rarely match a
click.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

import numpy as np
import polars as pl

from tests.generators import RAW_CSV, add_drift, scale_sizes
from torchrec_mtl.data.lists import Array
from torchrec_mtl.datasets.synthetic.funnel import SyntheticFunnel
from torchrec_mtl.datasets.synthetic.prepare import rank_auc
from torchrec_mtl.datasets.taobao.findings import PUBLISHED_ROWS
from torchrec_mtl.datasets.taobao.layout import AD, AD_FEATURE, BEHAVIOR_LOG, PROFILE, RAW_SAMPLE, TAGS, USER_PROFILE
from torchrec_mtl.datasets.taobao.tables import DAY, NUM_DAYS, PRICE_RESOLUTION
from torchrec_mtl.errors import check_at_least

FIRST_SECOND = 1_494_000_000  # 2017-05-06, Beijing time
BEHAVIOR_DAYS = 14  # before the first second
TAG_RATES = (0.95, 0.03, 0.01, 0.01)
WITHOUT_PROFILE = 0.07
PIECE = 2**18
# The first six interact in pairs, a field of the user with one of the ad. The last one groups rows.
SIZES = {
    "cms_segid": 97,
    "cate_id": 6_769,
    "cms_group_id": 13,
    "customer": 255_875,
    "age_level": 7,
    "price": 80,
    "final_gender_code": 2,
    "pvalue_level": 4,
    "shopping_level": 3,
    "occupation": 2,
    "new_user_class_level": 5,
    "campaign_id": 423_436,
    "brand": 99_816,
    "pid": 2,
    "adgroup_id": 846_811,
    "user": 1_141_729,
}
MISSING_CODE = {"pvalue_level": 0, "new_user_class_level": 0, "brand": 2}  # codes that stand for a missing value
PIDS = pl.Series(["430548_1007", "430539_1007"])


@dataclass(frozen=True)
class TaobaoGenerator:
    """Writes the four raw files, and the impressions' probabilities as ``truth.parquet``.

    Args:
        num_rows: number of impressions.
        base_rates: approximate shares of clicks and purchases among all rows.
        behaviors_per_row: number of noise rows in the behaviour log per impression.
        drift: amount by which the logit of a click falls from the first second to the last.
        first_id: smallest id.
        seed: seed of all random draws.

    Raises:
        InputError: if a number is out of range.

    Example::

        >>> import tempfile
        >>> folder = TaobaoGenerator(500, base_rates=(0.3, 0.1)).write(tempfile.mkdtemp())
        >>> (folder / "raw_sample.csv").read_text().splitlines()[0]
        'user,time_stamp,adgroup_id,pid,nonclk,clk'
        >>> 0.5 < oracle_auc(folder)["click"] < 1
        True
    """

    num_rows: int
    base_rates: tuple[float, float] = (0.0514, 0.002)
    behaviors_per_row: int = 27
    drift: float = 0.2
    first_id: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least(1, num_rows=self.num_rows, behaviors_per_row=self.behaviors_per_row)
        check_at_least(0, first_id=self.first_id, seed=self.seed)

    @cached_property
    def funnel(self) -> SyntheticFunnel:
        """The funnel that labels follow."""
        share = self.num_rows / PUBLISHED_ROWS["raw_sample"]
        return SyntheticFunnel(self.base_rates, scale_sizes(SIZES.values(), share), zipf_exponent=0.8, seed=self.seed)

    def write(self, directory: str | Path) -> Path:
        """Writes the files into ``directory``, which is created, and returns it."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        sizes = {name: field.num_embeddings for name, field in zip(SIZES, self.funnel.schema.fields, strict=True)}
        users, ads = (self._codes(sizes[key], 1 + seed) for seed, key in enumerate(("user", "adgroup_id")))
        self._write_tables(directory, users, ads)
        with (
            (directory / RAW_SAMPLE.name).open("wb") as samples,
            (directory / BEHAVIOR_LOG.name).open("wb") as behaviors,
        ):
            samples.write(f"{RAW_SAMPLE.first_line}\n".encode())
            behaviors.write(f"{BEHAVIOR_LOG.first_line}\n".encode())
            truth = pl.concat(list(self._write_impressions(users, ads, samples, behaviors)))
        truth.write_parquet(directory / "truth.parquet")
        return directory

    def _codes(self, num_rows: int, seed: int) -> pl.DataFrame:
        rows = self.funnel.sample(num_rows, seed)
        return rows.select(pl.col(f"field_{position}").alias(name) for position, name in enumerate(SIZES, 1))

    def _write_tables(self, directory: Path, users: pl.DataFrame, ads: pl.DataFrame) -> None:
        rng = np.random.default_rng([self.seed, 1])
        known = pl.Series(rng.random(users.height) >= WITHOUT_PROFILE)
        profiles = users.with_columns(user=pl.int_range(users.height)).filter(known)
        ads = ads.with_columns(adgroup_id=pl.int_range(ads.height))
        for layout, table, names in ((USER_PROFILE, profiles, ("user", *PROFILE)), (AD_FEATURE, ads, AD)):
            raw = table.select(self._raw(name) for name in names)
            raw = raw.sample(fraction=1, shuffle=True, seed=self.seed)
            missing = "" if layout is USER_PROFILE else "NULL"
            text = raw.write_csv(null_value=missing, **RAW_CSV)
            (directory / layout.name).write_text(f"{layout.first_line}\n{text}")

    def _write_impressions(
        self, users: pl.DataFrame, ads: pl.DataFrame, samples: IO[bytes], behaviors: IO[bytes]
    ) -> Iterator[pl.DataFrame]:
        """Writes the impressions and the log, and yields the truth of some impressions at a time."""
        for piece, first in enumerate(range(0, self.num_rows, PIECE)):
            rng = np.random.default_rng([self.seed, 2, piece])
            drawn = self._codes(min(PIECE, self.num_rows - first), 3 + piece)
            codes = drawn.select("user", "adgroup_id", "pid").hstack(users[drawn["user"]].select(PROFILE))
            codes = codes.hstack(ads[drawn["adgroup_id"]].select(AD[1:]))
            second = rng.integers(NUM_DAYS * DAY, size=codes.height)
            # a file of any size spans the eight days
            second[: NUM_DAYS * 2] = np.resize(np.arange(NUM_DAYS) * DAY, len(second[: NUM_DAYS * 2]))
            truth = self._truth(rng, codes, second)
            raw = truth.with_columns(nonclk=1 - pl.col("click"), clk="click")
            raw.select(column.name for column in RAW_SAMPLE.columns).write_csv(samples, **RAW_CSV)
            self._behaviors(rng, codes, truth, ads).write_csv(behaviors, **RAW_CSV)
            yield truth

    def _truth(self, rng: np.random.Generator, codes: pl.DataFrame, second: Array) -> pl.DataFrame:
        """Draws the labels, and returns raw ids, labels and the marginal probabilities of the labels."""
        rows = codes.rename({name: f"field_{position}" for position, name in enumerate(SIZES, 1)})
        click, purchase = self.funnel.conditional_probabilities(rows).T
        click = add_drift(click, self.drift, second / (NUM_DAYS * DAY))
        has_brand = (codes["brand"] != MISSING_CODE["brand"]).to_numpy()
        purchase = purchase * has_brand
        clicked = rng.random(len(click)) < click
        bought = clicked & (rng.random(len(click)) < purchase)
        return codes.select(
            self._raw("user"),
            time_stamp=FIRST_SECOND + second,
            adgroup_id=self._raw("adgroup_id"),
            pid=PIDS.gather(codes["pid"]),
            click=clicked.astype(np.int8),
            purchase=bought.astype(np.int8),
            p_click=click,
            p_purchase=click * purchase,
        )

    def _behaviors(
        self, rng: np.random.Generator, codes: pl.DataFrame, truth: pl.DataFrame, ads: pl.DataFrame
    ) -> pl.DataFrame:
        """Returns rows of the log: purchases within a day after their click, among noise."""
        num_noise = codes.height * self.behaviors_per_row
        products = ads[rng.integers(ads.height, size=num_noise)]
        noise = products.select("cate_id", "brand").with_columns(
            user=codes["user"].gather(rng.integers(codes.height, size=num_noise)),
            time_stamp=FIRST_SECOND + rng.integers(-BEHAVIOR_DAYS * DAY, NUM_DAYS * DAY, num_noise),
            btag=pl.Series(np.array(TAGS)[rng.choice(len(TAGS), num_noise, p=TAG_RATES)]),
        )
        bought = (truth["purchase"] == 1).arg_true()
        purchases = codes[bought].select("cate_id", "brand", "user")
        delay = rng.integers(DAY, size=len(bought))
        purchases = purchases.with_columns(
            time_stamp=truth["time_stamp"].gather(bought) + pl.Series(delay), btag=pl.lit("buy")
        )
        rows = pl.concat([noise, purchases]).sample(fraction=1, shuffle=True, seed=int(rng.integers(2**31)))
        brand = pl.col("brand").cast(pl.Int64) + self.first_id  # the log has no missing brand
        return rows.select(self._raw("user"), "time_stamp", "btag", self._raw("cate_id"), brand)

    def _raw(self, name: str) -> pl.Expr:
        """Returns the values of the raw files for codes; null for a missing one."""
        code = pl.col(name).cast(pl.Int64)
        if name == "price":
            return (2 ** (code / PRICE_RESOLUTION) - 1).round(2).alias(name)
        raw = code + self.first_id
        return (pl.when(code != MISSING_CODE[name]).then(raw) if name in MISSING_CODE else raw).alias(name)


def oracle_auc(directory: str | Path) -> dict[str, float]:
    """Returns the AUC of the true probabilities on the impressions of the eighth day."""
    truth = pl.read_parquet(Path(directory) / "truth.parquet")
    test = truth.filter(pl.col("time_stamp") >= FIRST_SECOND + (NUM_DAYS - 1) * DAY)
    return {task: rank_auc(test[f"p_{task}"], test[task]) for task in ("click", "purchase")}
