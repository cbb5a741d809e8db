"""What a preparation of Ali-CCP tells in its report."""

from collections.abc import Mapping
from typing import Any

from torchrec_mtl.data.raw.guards import Duplicates
from torchrec_mtl.data.raw.preparation import Found
from torchrec_mtl.datasets.ali_ccp import published
from torchrec_mtl.datasets.ali_ccp.impressions import Impressions


def found_in(read: Mapping[str, Impressions], num_rows: Mapping[str, int], duplicates: Duplicates) -> Found:
    """What was read from the raw splits and written to the prepared ones."""
    repeated, common = duplicates.count()
    return {
        "files": {split: str(impressions.file) for split, impressions in read.items()},
        "read": {split: dict(impressions.tally) for split, impressions in read.items()},
        "num_rows": dict(num_rows),
        "duplicates": {"within train": repeated, "test rows in train": common},
        "grouped": {split: impressions.is_grouped for split, impressions in read.items()},
        "click_rate_by_tenth": {split: impressions.click_rates() for split, impressions in read.items()},
    }


def describe(content: Found) -> list[str]:
    """The same in sentences."""
    arguments, num_rows = content["arguments"], content["num_rows"]
    told = []
    for split, tally in content["read"].items():
        rates = f"{tally['clicks']:,} clicks, {tally['purchases']:,} purchases"
        told.append(f"{split}: {tally['rows']:,} rows read, {tally['kept']:,} kept; {rates}")
        if tally["broken"]:
            done = {"drop": "dropped", "keep": "kept with weight 0"}[arguments["broken_funnel"]]
            told.append(f"{split}: {tally['broken']:,} rows have a purchase and no click; {done}")
        if content["grouped"][split]:
            told.append(f"{split}: rows with the same common features lie together, so a prefix is no sample")
        rates = " ".join(f"{rate:.2%}" for rate in content["click_rate_by_tenth"][split])
        told.append(f"{split}: click rate by tenth of the file: {rates}")
    told += [
        f"{content['duplicates']['within train']:,} rows of train repeat the features of an earlier one",
        f"{content['duplicates']['test rows in train']:,} rows of test have the features of a row of train",
    ]
    return told + _compared(arguments, num_rows, content["num_embeddings"])


def _compared(
    arguments: Mapping[str, Any], num_rows: Mapping[str, int], num_embeddings: Mapping[str, int]
) -> list[str]:
    """With the published figures, where these are the whole files under protocol "aitm"."""
    if arguments["protocol"] != "aitm" or arguments["sample"] < 1 or not published.looks_true(num_rows):
        return []
    differences = published.differences(num_rows, num_embeddings)
    return [f"differs from the published figures: {told}" for told in differences] or [
        "rows and ids are as many as published"
    ]
