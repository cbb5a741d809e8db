"""The finished runs of a comparison in one CSV file, to commit: a comparison goes on from it on any machine."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from torchrec_mtl.errors import InputError
from torchrec_mtl.files import make_folder, parse_json, read_json, to_json, write_whole
from torchrec_mtl.jobs.compare.runs import RESULT, Run, check_result, read_result

COLUMNS = ("run", "valid_score", "seconds", "date", "commit", "result")  # the last is the whole of result.json


class FinishedRuns:
    """A line for each finished run, by the name of its folder; weights are not in it.

    Args:
        file: the CSV file, which need not exist yet.
        directory: folder of the comparison's runs on one data set.

    Raises:
        InputError: if the file is not such a file.
    """

    def __init__(self, file: Path, directory: Path) -> None:
        self.file, self.directory = file, directory
        self._lines: dict[str, dict[str, str]] = {}
        if not file.exists():
            return
        try:
            rows = pl.read_csv(file, infer_schema=False)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise InputError(f"{file}: cannot be read as CSV ({error})") from error
        if tuple(rows.columns) != COLUMNS:
            raise InputError(f"{file}: its columns (={rows.columns}) must be {list(COLUMNS)}")
        self._lines = {row["run"]: row for row in rows.iter_rows(named=True)}

    def _name(self, run: Run) -> str:
        return run.directory.relative_to(self.directory).as_posix()

    def result(self, run: Run) -> dict[str, Any] | None:
        """The result of a run by its line, on whatever data it was made; None if it has none.

        Raises:
            InputError: if it was made with other settings, or its line is damaged.
        """
        line = self._lines.get(self._name(run))
        return None if line is None else self._checked(replace(run, data=None), line, "name another `choices`")

    def _checked(self, run: Run, line: dict[str, str], remedy: str) -> dict[str, Any]:
        source = f"{self.file}: run {self._name(run)}"
        result: dict[str, Any] = parse_json((line["result"] or "").encode(), source)
        check_result(run, result, source, remedy)
        return result

    def restore(self, runs: Sequence[Run]) -> int:
        """Writes ``result.json`` of the runs that are finished in the file and not here; returns their number.

        Raises:
            InputError: if one was made with other settings or data, has another result here, or its line is damaged.
        """
        restored = 0
        for run in runs:
            line, target = self._lines.get(self._name(run)), run.directory / RESULT
            if line is None:
                continue
            here = read_result(run)
            result = self._checked(run, line, "name another `finished`, or remove the line")
            if here is None:
                run.directory.mkdir(parents=True, exist_ok=True)
                write_whole(target, to_json(result, indent=1) + "\n")
                restored += 1
            elif to_json(here) != to_json(result):
                times = f"of {result['date']}, not that of {here['date']} in {target}"
                raise InputError(f"{self.file}: run {self._name(run)} has the result {times}: remove one of them")
        return restored

    def add(self, runs: Sequence[Run]) -> None:
        """Writes the file with a line for each of the runs that is finished here, beside those that it has."""
        finished = [run for run in runs if (run.directory / RESULT).is_file()]
        missing = [run for run in finished if self._name(run) not in self._lines]
        if not missing:
            return
        for run in missing:
            result = read_json(run.directory / RESULT)
            texts = {name: str(result[name]) for name in COLUMNS[1:-1]}
            self._lines[self._name(run)] = {"run": self._name(run), **texts, "result": to_json(result)}
        make_folder(self.file.parent, "finished")
        write_whole(self.file, pl.DataFrame(list(self._lines.values()), schema=list(COLUMNS)).write_csv())
