"""What can be done with a finished run: the commands, with its folders."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from torchrec_mtl.jobs.results import ModelReport


def next_steps(reports: Sequence[ModelReport], models: str, directory: Path, data: str | Path) -> str:
    """The commands that evaluate, score with and export the last model of a run.

    Args:
        reports: the models, in order.
        models: the option ``--models`` that named them.
        directory: folder of the run.
        data: prepared folder or URI of the data.
    """
    named = models.split(",")[-1]
    system = f" --system {named}" if ":" in named else ""
    run = shlex.quote(str(directory / reports[-1].config.name)) + system
    dataset, rows = shlex.quote(str(data)), Path(data) / "test.parquet"
    scored = shlex.quote(str(rows)) if rows.is_file() else "ROWS"
    output = [shlex.quote(str(directory / name)) for name in ("scores.parquet", "package")]
    commands = [
        f"evaluate {run} --dataset {dataset}",
        f"predict {run} --input {scored} --output {output[0]}",
        f"export {run} --dataset {dataset} --output {output[1]}",
    ]
    which = f", with {reports[-1].title} or another of the models" if len(reports) > 1 else ""
    return "\n".join([f"next{which}:", *(f"  torchrec-mtl {command}" for command in commands)])
