"""The report of a preparation of Ali-CCP."""

from collections.abc import Mapping
from typing import Any

from torchrec_mtl.data.raw.guards import Duplicates
from torchrec_mtl.data.raw.preparation import Report
from torchrec_mtl.datasets.ali_ccp import published
from torchrec_mtl.datasets.ali_ccp.impressions import Impressions


def summarise(read: Mapping[str, Impressions], duplicates: Duplicates) -> Report:
    """Returns figures of what was read from the raw splits."""
    repeated, common = duplicates.count()
    return {
        "files": {split: str(impressions.file) for split, impressions in read.items()},
        "read": {split: dict(impressions.tally) for split, impressions in read.items()},
        "duplicates": {"within train": repeated, "test rows in train": common},
        "grouped": {split: impressions.is_grouped for split, impressions in read.items()},
        "click_rate_by_tenth": {split: impressions.click_rates() for split, impressions in read.items()},
    }


def describe(report: Report) -> list[str]:
    """Returns the figures in sentences."""
    arguments, sentences = report["arguments"], []
    for split, tally in report["read"].items():
        counts = f"{tally['clicks']:,} clicks, {tally['purchases']:,} purchases"
        sentences.append(f"{split}: {tally['rows']:,} rows read, {tally['kept']:,} kept; {counts}")
        if tally["broken"]:
            action = {"drop": "dropped", "keep": "kept with weight 0"}[arguments["broken_funnel"]]
            sentences.append(f"{split}: {tally['broken']:,} rows have a purchase and no click; {action}")
        if report["grouped"][split]:
            sentences.append(f"{split}: rows with the same common features lie together: a prefix is no random sample")
        rates = " ".join(f"{rate:.2%}" for rate in report["click_rate_by_tenth"][split])
        sentences.append(f"{split}: click rate by tenth of the file: {rates}")
    sentences += [
        f"{report['duplicates']['within train']:,} rows of train repeat the features of an earlier one",
        f"{report['duplicates']['test rows in train']:,} rows of test have the features of a row of train",
    ]
    return sentences + _compare_with_published(arguments, report["num_rows"], report["num_embeddings"])


def _compare_with_published(
    arguments: Mapping[str, Any], num_rows: Mapping[str, int], num_embeddings: Mapping[str, int]
) -> list[str]:
    """Compares with the published figures, if these are the full files under protocol "aitm"."""
    if arguments["protocol"] != "aitm" or arguments["sample"] < 1 or not published.is_full_size(num_rows):
        return []
    differences = published.find_differences(num_rows, num_embeddings)
    return [f"differs from the published figures: {difference}" for difference in differences] or [
        "rows and ids are as many as published"
    ]
