"""What a preparation of TaoBao's display ads tells in its report."""

from collections.abc import Mapping

import polars as pl

from torchrec_mtl.data.encoders import find
from torchrec_mtl.data.raw.preparation import Found
from torchrec_mtl.datasets.taobao.tables import MISSING

TRUE_ROWS = {"raw_sample": 26_557_961, "ad_feature": 846_811, "user_profile": 1_061_768, "behaviors": 723_268_134}


def found_in(ads: pl.DataFrame, profiles: pl.DataFrame, impressions: pl.DataFrame) -> Found:
    """What the tables tell."""
    users = impressions["user"].unique().to_numpy()
    without_profile = int((find(profiles["userid"].to_numpy(), users) < 0).sum())
    by_day = impressions.group_by("day").agg(pl.col("click").mean()).sort("day")
    return {
        "raw_sample": {"rows": impressions.height, "clicks": int(impressions["click"].sum())},
        "ad_feature": {"rows": ads.height, "without brand": int((ads["brand"] == MISSING).sum())},
        "user_profile": {"rows": profiles.height},
        "users": {"all": len(users), "without profile": without_profile},
        "click_rate_by_day": [round(rate, 5) for rate in by_day["click"]],
    }


def describe(content: Found) -> list[str]:
    """What was found, in sentences."""
    rows, users = content["raw_sample"], content["users"]
    told = [
        f"{rows['rows']:,} impressions read, {rows['clicks']:,} clicks",
        f"{users['without profile']:,} of {users['all']:,} users have no profile",
        "click rate by day: " + " ".join(f"{rate:.2%}" for rate in content["click_rate_by_day"]),
    ]
    for split, positives in content["positives"].items():
        counts = ", ".join(f"{count:,} {label}s" for label, count in positives.items())
        told.append(f"{split}: {content['num_rows'][split]:,} rows, {counts}")
    if "behaviors" in content:
        told.append("{kept:,} of {rows:,} behaviours are within the windows".format(**content["behaviors"]))
    days = content["arguments"]["purchase_days"]
    if days:
        told += [
            f"a purchase may be up to {days} days after its click: the last windows reach beyond the log",
            f"{content['ad_feature']['without brand']:,} ads have no brand, and so no purchases",
        ]
    first, second = content["duplicates"].values()
    told += [
        f"{first:,} rows of the first seven days repeat the user, ad and place of another",
        f"{second:,} rows of test have the user, ad and place of one of the first seven days",
    ]
    return told + compare_with_published({name: content[name]["rows"] for name in TRUE_ROWS if name in content})


def compare_with_published(num_rows: Mapping[str, int]) -> list[str]:
    """One sentence for each file whose rows are not as many as published; none if the impressions are far fewer.

    Example::

        >>> compare_with_published({"raw_sample": 1000, "ad_feature": 10})
        []
        >>> compare_with_published({"raw_sample": 26_557_961, "ad_feature": 846_810})
        ['differs from the published files: ad_feature has 846,810 rows, not 846,811']
        >>> compare_with_published({"raw_sample": 26_557_961})
        ['rows are as many as published']
    """
    if abs(num_rows["raw_sample"] / TRUE_ROWS["raw_sample"] - 1) > 0.02:
        return []
    differences = [
        f"differs from the published files: {name} has {count:,} rows, not {TRUE_ROWS[name]:,}"
        for name, count in num_rows.items()
        if count != TRUE_ROWS[name]
    ]
    return differences or ["rows are as many as published"]
