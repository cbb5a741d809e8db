"""The arguments of a preparation, and the reading of the raw files that it needs."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from torchrec_mtl.data.raw.bad_rows import BadRows
from torchrec_mtl.data.raw.files import RawFile, find_raw_file
from torchrec_mtl.data.raw.guards import Duplicates
from torchrec_mtl.data.raw.hashes import SAMPLE, uniform
from torchrec_mtl.data.raw.lines import Progress
from torchrec_mtl.data.raw.preparation import RawArguments, Report
from torchrec_mtl.datasets.taobao.behaviors import BehaviorLog, Windows
from torchrec_mtl.datasets.taobao.features import Joiner
from torchrec_mtl.datasets.taobao.findings import summarise
from torchrec_mtl.datasets.taobao.layout import AD_FEATURE, BEHAVIOR_LOG, RAW_SAMPLE, USER_PROFILE
from torchrec_mtl.datasets.taobao.tables import read_ads, read_impressions, read_profiles
from torchrec_mtl.errors import InputError, check_at_least


@dataclass(frozen=True, kw_only=True)
class TaobaoArguments(RawArguments):
    """Arguments of `prepare_taobao`, checked."""

    history_length: int
    history_days: int
    purchase_days: int
    min_count: int

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, history_length=self.history_length, purchase_days=self.purchase_days)
        check_at_least(1, history_days=self.history_days, min_count=self.min_count)

    @property
    def windows(self) -> Windows:
        """Windows of the behaviour log."""
        return Windows(self.history_length, self.history_days, self.purchase_days)


def read_sources(
    arguments: TaobaoArguments, parts: Path, bad_rows: BadRows, progress: Progress, num_threads: int
) -> tuple[Joiner, Report]:
    """Reads ads, profiles, impressions and, if needed, the behaviour log. Returns them and their figures.

    Args:
        arguments: arguments of the preparation.
        parts: folder for intermediate files.
        bad_rows: handler of bad rows.
        progress: function that is called as `read_lines` calls it.
        num_threads: number of threads that parse.

    Raises:
        InputError: if a file is missing or damaged, at least half of the impressions are clicks, or on a bad row, as
            `BadRows.add` raises it.
    """
    windows, options = arguments.windows, (bad_rows, progress, num_threads)
    formats = [AD_FEATURE, USER_PROFILE, RAW_SAMPLE, *([BEHAVIOR_LOG] if windows.needs_log else [])]
    files = [find_raw_file(arguments.raw, layout.name) for layout in formats]
    ads, profiles = read_ads(files[0], *options), read_profiles(files[1], *options)
    impressions = read_impressions(files[2], ads, *options)
    figures = summarise(ads, profiles, impressions)
    _check_clicks(files[2], figures)
    if arguments.sample < 1:
        impressions = _sample(impressions, arguments)
    log = None
    if windows.needs_log:
        (parts / "behaviors").mkdir()
        log = BehaviorLog(windows, impressions, parts / "behaviors")
        log.partition(files[3], *options)
        figures |= {"behaviors": {"rows": log.num_rows, "kept": log.num_kept}}
    joiner = Joiner(ads, profiles, impressions, log, arguments.seed)
    duplicates = Duplicates(parts / "hashes")
    for split, hashes in zip(("train", "test"), joiner.hash_rows(), strict=True):
        duplicates.add(split, hashes)
    repeated, common = duplicates.count()
    return joiner, {**figures, "duplicates": {"within the first seven days": repeated, "test rows in them": common}}


def _check_clicks(file: RawFile, figures: Report) -> None:
    rows, clicks = figures["raw_sample"]["rows"], figures["raw_sample"]["clicks"]
    if 2 * clicks >= rows:
        rule = f"clicks ({clicks}) must be fewer than other impressions ({rows - clicks})"
        raise InputError(f"{file}: {rule}; the last columns must be nonclk, clk")


def _sample(impressions: pl.DataFrame, arguments: TaobaoArguments) -> pl.DataFrame:
    """Returns the impressions of a share of the users."""
    users = impressions["user"].to_numpy()
    kept = impressions.filter(pl.Series(uniform(users, arguments.seed, SAMPLE) < arguments.sample))
    if kept.is_empty():
        raise InputError(f"`sample` (={arguments.sample}) keeps none of the {len(np.unique(users))} users")
    return kept
