"""What a preparation read and found, as ``report.json``; its findings are sentences."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torchrec_mtl.data.raw.bad_rows import BadRows
from torchrec_mtl.data.raw.guards import SUSPICIOUS_AUC, LeakCheck
from torchrec_mtl.data.raw.vocabulary import Vocabularies

FILE_NAME = "report.json"
Found = dict[str, Any]


def write_report(
    folder: Path,
    found: Mapping[str, Any],
    bad_rows: BadRows,
    vocabularies: Vocabularies,
    leaks: LeakCheck,
    describe: Callable[[Found], list[str]],
) -> None:
    """Writes ``report.json`` into ``folder``; ``describe`` makes sentences of what a data set of its kind has in it."""
    content = {
        **found,
        "bad_rows": dict(bad_rows.counts),
        "num_embeddings": {field: vocabularies.num_embeddings(field) for field in vocabularies.ids},
        "vocabulary_digest": vocabularies.digest,
        "leak_auc": {
            f"{field} {label}": None if math.isnan(auc) else round(auc, 4)
            for (field, label), auc in leaks.aucs().items()
        },
    }
    told = [f"{file}: {count:,} bad rows were put aside" for file, count in content["bad_rows"].items()]
    for name, auc in content["leak_auc"].items():
        if auc is not None and auc > SUSPICIOUS_AUC:
            field, label = name.split()
            told.append(f"field {field} alone predicts {label} with AUC {auc:.3f}: does it leak the label?")
    content["findings"] = [*describe(content), *told]
    (folder / FILE_NAME).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_findings(folder: str | Path) -> list[str]:
    """The sentences of a prepared data set's report."""
    return list(json.loads((Path(folder) / FILE_NAME).read_text(encoding="utf-8"))["findings"])
