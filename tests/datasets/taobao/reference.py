"""The preparation in plain Python, row by row, written from its description."""

import csv
import math
from collections import Counter
from pathlib import Path
from typing import Any

PROFILE = (
    "cms_segid",
    "cms_group_id",
    "final_gender_code",
    "age_level",
    "pvalue_level",
    "shopping_level",
    "occupation",
)
SINGLE = ("user", *PROFILE, "new_user_class_level", "adgroup_id", "cate_id", "campaign_id", "customer", "brand")
SINGLE += ("price", "pid")
DAY = 86_400
Row = dict[str, Any]


def read(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as handle:
        return [{name.strip(): value for name, value in row.items()} for row in csv.DictReader(handle)]


def number(text: str | None) -> int | None:
    return None if text in (None, "", "NULL") else int(text)


def impressions(folder: Path, history_length: int, history_days: int, purchase_days: int) -> list[Row]:
    """Reads impressions with all raw values, None where missing; ``day`` counts from 0."""
    ads = {row["adgroup_id"]: row for row in read(folder / "ad_feature.csv")}
    profiles = {row["userid"]: row for row in read(folder / "user_profile.csv")}
    behaviors = read(folder / "behavior_log.csv")
    logs: dict[str, list[dict[str, str]]] = {}  # by user
    for behavior in sorted(behaviors, key=lambda row: int(row["time_stamp"])):  # stable
        logs.setdefault(behavior["user"], []).append(behavior)
    rows = []
    samples = read(folder / "raw_sample.csv")
    day_1 = min((int(sample["time_stamp"]) + 8 * 3600) // DAY for sample in samples)
    for sample in samples:
        ad, profile, time = ads[sample["adgroup_id"]], profiles.get(sample["user"], {}), int(sample["time_stamp"])
        row: Row = {"user": int(sample["user"]), "time_stamp": time, "click": int(sample["clk"])}
        row |= {name: number(profile.get(name)) for name in (*PROFILE, "new_user_class_level")}
        row |= {name: number(ad[name]) for name in ("adgroup_id", "cate_id", "campaign_id", "customer", "brand")}
        row["price"] = round(4 * math.log2(1 + float(ad["price"])))
        row["pid"] = sample["pid"]
        row["day"] = (time + 8 * 3600) // DAY - day_1
        log = logs.get(sample["user"], [])
        before = [b for b in log if time - history_days * DAY <= int(b["time_stamp"]) < time]
        for name, column in (("history_cate", "cate"), ("history_brand", "brand")):
            row[name] = [int(b[column]) for b in before][-history_length:] if history_length else []
        row["purchase"] = int(
            row["click"]
            and any(
                b["btag"] == "buy"
                and (b["cate"], b["brand"]) == (ad["cate_id"], ad["brand"])
                and time <= int(b["time_stamp"]) <= time + purchase_days * DAY
                for b in log
            )
        )
        rows.append(row)
    return rows


def known(rows: list[Row], field: str, min_count: int) -> set[Any]:
    """Returns the values that occur at least ``min_count`` times in the first seven days."""
    values = [row[field] for row in rows if row["day"] < 7]
    if field.startswith("history"):
        values = [value for history in values for value in history]
    return {value for value, count in Counter(values).items() if count >= min_count and value is not None}


def drop_rare(rows: list[Row], fields: tuple[str, ...], min_count: int) -> list[Row]:
    """Replaces rare and unseen values in ``rows`` by None."""
    vocabularies = {field: known(rows, field, min_count) for field in fields}
    for row in rows:
        for field, values in vocabularies.items():
            if field.startswith("history"):
                row[field] = [value if value in values else None for value in row[field]]
            elif row[field] not in values:
                row[field] = None
    return rows
