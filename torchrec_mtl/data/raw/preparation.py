"""The steps that all preparations share: arguments, building the data set once, the report."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torchrec_mtl.data.raw.bad_rows import BadRows, check_policy
from torchrec_mtl.data.raw.guards import SUSPICIOUS_AUC, LeakCheck
from torchrec_mtl.data.schema import Schema
from torchrec_mtl.data.writer import build_once
from torchrec_mtl.errors import InputError, check_at_least, check_positive_share
from torchrec_mtl.files import read_json, to_json

REPORT_FILE = "report.json"
Report = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class RawArguments:
    """The arguments that all preparations of public raw files share.

    Args:
        raw: folder of the raw files.
        bad_rows: policy for rows that break the format, see `BadRows`.
        bad_rows_limit: largest number of rows to put aside.
        sample: share of the rows or users to keep, above 0 and at most 1.
        seed: seed of everything that is drawn.

    Raises:
        InputError: if an argument is out of its range.
    """

    raw: str
    bad_rows: str
    bad_rows_limit: int
    sample: float
    seed: int

    def __post_init__(self) -> None:
        check_policy(self.bad_rows, self.bad_rows_limit)
        check_positive_share(sample=self.sample)
        check_at_least(0, seed=self.seed)


def without_progress(stage: str, rows: int, share: float) -> None:
    """Reports no progress."""


def prepare_once(
    output: str | Path,
    arguments: Mapping[str, Any],
    prepare: Callable[[Path, BadRows], Schema],
    notes: Mapping[str, str],
) -> Path:
    """Builds the prepared data set ``output`` unless it exists, and returns its path.

    Args:
        output: folder of the data set.
        arguments: arguments of the preparation, with ``bad_rows`` and ``bad_rows_limit``; saved with the data set.
        prepare: function that writes the data set into a folder and returns its schema.
        notes: notes for the schema: what a reader of the data must know.

    Raises:
        InputError: if ``output`` was prepared with other arguments, or as `build_once` raises it.
    """

    preparation = to_json(arguments)

    def build(folder: Path) -> Schema:
        with BadRows(arguments["bad_rows"], arguments["bad_rows_limit"], folder) as bad_rows:
            schema = prepare(folder, bad_rows)
        return replace(schema, notes={**notes, "preparation": preparation})

    directory = build_once(output, build)
    used = Schema.load(directory).notes.get("preparation")
    if used != preparation:
        raise InputError(f"`output` (={str(output)!r}) must be a new folder: it was prepared with {used}")
    return directory


def write_report(
    folder: Path,
    schema: Schema,
    bad_rows: BadRows,
    describe: Callable[[Report], list[str]],
    figures: Mapping[str, Any] | None = None,
    leaks: LeakCheck | None = None,
) -> None:
    """Writes ``report.json``: figures of what was read and found, and the same in sentences.

    Args:
        folder: folder of the data set.
        schema: schema of the data set, with its numbers of rows.
        bad_rows: rows that were put aside.
        describe: function that turns the report into sentences.
        figures: figures that only this data set has.
        leaks: measure of how well each field alone predicts each label.
    """
    report = {
        **(figures or {}),
        "num_rows": dict(schema.num_rows),
        "bad_rows": dict(bad_rows.counts),
        "num_embeddings": {field.name: field.num_embeddings for field in schema.fields},
        "vocabulary_digest": schema.vocabulary_digest,
    }
    warnings = [f"{file}: {count:,} bad rows were put aside" for file, count in report["bad_rows"].items()]
    if leaks is not None:
        aucs = leaks.aucs()
        report["leak_auc"] = {" ".join(key): None if math.isnan(auc) else round(auc, 4) for key, auc in aucs.items()}
        warnings += [
            f"field {field} alone predicts {label} with AUC {auc:.3f}: does it leak the label?"
            for (field, label), auc in aucs.items()
            if auc > SUSPICIOUS_AUC
        ]
    report["findings"] = [*describe(report), *warnings]
    (folder / REPORT_FILE).write_text(to_json(report, indent=2) + "\n", encoding="utf-8")


def read_findings(folder: str | Path) -> list[str]:
    """Returns the sentences in the report of a prepared data set."""
    file = Path(folder) / REPORT_FILE
    findings = read_json(file).get("findings")
    if not isinstance(findings, list):
        raise InputError(f"{file}: `findings` (={findings!r:.60}) must be a list of sentences")
    return findings
