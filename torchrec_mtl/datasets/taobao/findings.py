"""The report of a preparation of TaoBao's display ads."""

from collections.abc import Mapping

import polars as pl

from torchrec_mtl.data.lists import find
from torchrec_mtl.data.raw.preparation import Report

PUBLISHED_ROWS = {"raw_sample": 26_557_961, "ad_feature": 846_811, "user_profile": 1_061_768, "behaviors": 723_268_134}


def summarise(ads: pl.DataFrame, profiles: pl.DataFrame, impressions: pl.DataFrame) -> Report:
    """Returns figures of the raw tables."""
    users = impressions["user"].unique().to_numpy()
    without_profile = int((find(profiles["userid"].to_numpy(), users) < 0).sum())
    by_day = impressions.group_by("day").agg(pl.col("click").mean()).sort("day")
    return {
        "raw_sample": {"rows": impressions.height, "clicks": int(impressions["click"].sum())},
        "ad_feature": {"rows": ads.height, "without brand": ads["brand"].null_count()},
        "user_profile": {"rows": profiles.height},
        "users": {"all": len(users), "without profile": without_profile},
        "click_rate_by_day": [round(rate, 5) for rate in by_day["click"]],
    }


def describe(report: Report) -> list[str]:
    """Returns the figures in sentences."""
    rows, users = report["raw_sample"], report["users"]
    sentences = [
        f"{rows['rows']:,} impressions read, {rows['clicks']:,} clicks",
        f"{users['without profile']:,} of {users['all']:,} users have no profile",
        "click rate by day: " + " ".join(f"{rate:.2%}" for rate in report["click_rate_by_day"]),
    ]
    for split, positives in report["positives"].items():
        counts = ", ".join(f"{count:,} {label}s" for label, count in positives.items())
        sentences.append(f"{split}: {report['num_rows'][split]:,} rows, {counts}")
    if "behaviors" in report:
        sentences.append("{kept:,} of {rows:,} behaviours are within the windows".format(**report["behaviors"]))
    days = report["arguments"]["purchase_days"]
    if days:
        sentences += [
            f"a purchase may be up to {days} days after its click: the last windows reach beyond the log",
            f"{report['ad_feature']['without brand']:,} ads have no brand, and so no purchases",
        ]
    in_train, in_test = report["duplicates"].values()
    sentences += [
        f"{in_train:,} rows of the first seven days repeat the user, ad and place of another",
        f"{in_test:,} rows of test have the user, ad and place of one of the first seven days",
    ]
    num_rows = {name: report[name]["rows"] for name in PUBLISHED_ROWS if name in report}
    return sentences + compare_with_published(num_rows)


def compare_with_published(num_rows: Mapping[str, int]) -> list[str]:
    """Returns a sentence for each file whose number of rows differs from the published one.

    Returns nothing if the number of impressions differs by more than 2 %: then these are not the published files.

    Example::

        >>> compare_with_published({"raw_sample": 1000, "ad_feature": 10})
        []
        >>> compare_with_published({"raw_sample": 26_557_961, "ad_feature": 846_810})
        ['differs from the published files: ad_feature has 846,810 rows, not 846,811']
        >>> compare_with_published({"raw_sample": 26_557_961})
        ['rows are as many as published']
    """
    if abs(num_rows["raw_sample"] / PUBLISHED_ROWS["raw_sample"] - 1) > 0.02:
        return []
    differences = [
        f"differs from the published files: {name} has {count:,} rows, not {PUBLISHED_ROWS[name]:,}"
        for name, count in num_rows.items()
        if count != PUBLISHED_ROWS[name]
    ]
    return differences or ["rows are as many as published"]
