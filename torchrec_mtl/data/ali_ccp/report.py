"""What a preparation read and found, as ``report.json``; its findings are sentences."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torchrec_mtl.data.ali_ccp import golden
from torchrec_mtl.data.ali_ccp.guards import SUSPICIOUS_AUC, LeakCheck, count_duplicates
from torchrec_mtl.data.ali_ccp.impressions import Impressions
from torchrec_mtl.data.ali_ccp.protocols import Arguments
from torchrec_mtl.data.ali_ccp.vocabulary import Vocabularies
from torchrec_mtl.data.raw.bad_rows import BadRows

FILE_NAME = "report.json"


def write_report(
    folder: Path,
    arguments: Arguments,
    vocabularies: Vocabularies,
    leaks: LeakCheck,
    num_rows: Mapping[str, int],
    bad_rows: BadRows,
    train: Impressions,
    test: Impressions,
) -> None:
    """Writes ``report.json`` into ``folder``."""
    read = {"train": train, "test": test}
    repeated, common = count_duplicates(train.hashes, test.hashes)
    content: dict[str, Any] = {
        "arguments": asdict(arguments),
        "files": {split: str(impressions.file) for split, impressions in read.items()},
        "read": {split: dict(impressions.tally) for split, impressions in read.items()},
        "bad_rows": dict(bad_rows.counts),
        "num_rows": dict(num_rows),
        "num_embeddings": {field: vocabularies.num_embeddings(field) for field in vocabularies.ids},
        "vocabulary_digest": vocabularies.digest,
        "duplicates": {"within train": repeated, "test rows in train": common},
        "grouped": {split: impressions.is_grouped for split, impressions in read.items()},
        "click_rate_by_tenth": {split: impressions.click_rates() for split, impressions in read.items()},
        "leak_auc": {
            f"{field} {label}": None if math.isnan(auc) else round(auc, 4)
            for (field, label), auc in leaks.aucs().items()
        },
    }
    content["findings"] = _findings(content)
    (folder / FILE_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_findings(folder: str | Path) -> list[str]:
    """The sentences of a prepared data set's report."""
    return list(json.loads((Path(folder) / FILE_NAME).read_text(encoding="utf-8"))["findings"])


def _findings(content: Mapping[str, Any]) -> list[str]:
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
    told += [f"{file}: {count:,} bad rows were put aside" for file, count in content["bad_rows"].items()]
    told += [
        f"{content['duplicates']['within train']:,} rows of train repeat the features of an earlier one",
        f"{content['duplicates']['test rows in train']:,} rows of test have the features of a row of train",
    ]
    for name, auc in content["leak_auc"].items():
        if auc is not None and auc > SUSPICIOUS_AUC:
            told.append(
                "field {} alone predicts {} with AUC {:.3f}: does it leak the label?".format(*name.split(), auc)
            )
    return told + _compared(arguments, num_rows, content["num_embeddings"])


def _compared(
    arguments: Mapping[str, Any], num_rows: Mapping[str, int], num_embeddings: Mapping[str, int]
) -> list[str]:
    """With the published figures, where these are the whole files under protocol "aitm"."""
    if arguments["protocol"] != "aitm" or arguments["sample"] < 1 or not golden.looks_true(num_rows):
        return []
    differences = golden.differences(num_rows, num_embeddings)
    return [f"differs from the published figures: {told}" for told in differences] or [
        "rows and ids are as many as published"
    ]
