"""The runs that a comparison needs, and the choices of its search."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs.compare.candidates import Candidate
from torchrec_mtl.jobs.compare.finished import FinishedRuns
from torchrec_mtl.jobs.compare.protocols import KNOWN, Protocol
from torchrec_mtl.jobs.compare.runs import Run, read_result
from torchrec_mtl.jobs.compare.table_models import FitConfig, TableModel, fit_config
from torchrec_mtl.jobs.run_config import RunConfig
from torchrec_mtl.jobs.settings import make_config
from torchrec_mtl.metrics import METRICS, Metric
from torchrec_mtl.systems import System
from torchrec_mtl.training.config import TrainingConfig
from torchrec_mtl.training.evaluation import early_stopping_metric

SWEPT = "bpcm"


def config_of(
    system: System | TableModel,
    protocol: Protocol,
    candidate: Candidate,
    overrides: Sequence[str],
    seed: int = 0,
    others: Sequence[str] = (),
) -> RunConfig | FitConfig:
    """The settings of a system under a protocol, with a candidate's overrides and then the ``overrides``.

    Of the overrides, table models take only the metric by which validation chooses. Raises `InputError` as
    `make_config` does.
    """
    if isinstance(system, TableModel):
        given = {**protocol.settings.common, **dict(override.partition("=")[::2] for override in overrides)}
        metric = given.get("training.early_stopping_metric", TrainingConfig.early_stopping_metric)
        return fit_config(system, candidate, seed, metric)
    of_run = [*candidate, *overrides, f"training.seed={seed}"]
    return make_config(system, protocol.settings, of_run, others)


@dataclass(frozen=True)
class Plan:
    """The runs on one data set.

    Args:
        protocol: protocol of the comparison.
        dataset: folder or URI of the prepared data set.
        directory: folder of the runs.
        seeds: seeds of initialisation and row order; the search and the sweep use the first.
        systems: systems of the protocol that are asked for.
        overrides: settings that are replaced in every run, ``path=value``.
        metrics: names of ``known`` metrics that the report shows, in order.
        known: all metrics that the runs measure, by name.
        data: what `describe_data` says of the data; None for any data.
        searched_in: finished runs of a comparison on other data, whose search decides; this one then searches nothing.
    """

    protocol: Protocol
    dataset: Path | str
    directory: Path
    seeds: Sequence[int]
    systems: Sequence[System | TableModel]
    overrides: Sequence[str] = ()
    metrics: Sequence[str] = ("auc",)
    known: Mapping[str, Metric] = field(default_factory=lambda: METRICS)
    data: str | None = None
    searched_in: FinishedRuns | None = None

    @cached_property
    def chosen_by(self) -> Metric:
        """The early stopping metric, which chooses weights and candidates.

        Raises:
            InputError: if runs have different ones, or it is unknown.
        """
        candidates = [(system.name, each) for system in self.systems for each in self.protocol.candidates(system)]
        configs = [self.config(*candidate, self.seeds[0]) for candidate in candidates]
        names = sorted({config.early_stopping_metric for config in configs})
        if len(names) > 1:
            raise InputError(f"`early_stopping_metric` (={names}) must be the same in all runs that are compared")
        return early_stopping_metric(configs[0], self.known)

    @property
    def searched(self) -> list[str]:
        """The models that search; ablations use the choice of their model."""
        return list(dict.fromkeys(system.base for system in self.systems))

    @property
    def by_name(self) -> dict[str, System | TableModel]:
        """Every known system by name."""
        return {**KNOWN, **{system.name: system for system in self.systems}}

    def config(self, name: str, candidate: Candidate, seed: int, point: Sequence[str] = ()) -> RunConfig | FitConfig:
        """The settings of a system with the overrides of a candidate and of a point of the sweep."""
        return config_of(
            self.by_name[name], self.protocol, candidate, [*self.overrides, *point], seed, list(self.by_name)
        )

    def _run(self, stage: str, variant: str, config: RunConfig | FitConfig, **options: Any) -> Run:
        names = [stage, config.name, *([variant] if variant else []), f"seed-{config.seed}"]
        directory = self.directory.joinpath(*names)
        return Run(stage, variant, self.dataset, config, directory, known=self.known, data=self.data, **options)

    def search_runs(self) -> list[Run]:
        """The runs of the search that this comparison makes."""
        return [] if self.searched_in is not None else self._search_runs()

    def _search_runs(self) -> list[Run]:
        """A run of every model with every candidate; none of a model with only one."""
        return [
            self._run("search", f"candidate-{i}", self.config(system, candidate, self.seeds[0]))
            for system in self.searched
            for candidates in [self.protocol.candidates(self.by_name[system])]
            for i, candidate in enumerate(candidates)
            if len(candidates) > 1
        ]

    def search_scores(self) -> dict[str, dict[int, float]]:
        """The validation score of every candidate that has a finished run, by model and number.

        Raises:
            InputError: if a run was made with other settings than this comparison's.
        """
        read = read_result if self.searched_in is None else self.searched_in.result
        scores: dict[str, dict[int, float]] = {}
        for run in self._search_runs():
            result = read(run)
            if result is not None:
                number = int(run.variant.removeprefix("candidate-"))
                scores.setdefault(run.config.name, {})[number] = result["valid_score"]
        return scores

    def choices(self) -> dict[str, int]:
        """The candidate with the best validation score, the first of equals, of every model with a finished run."""
        merit = self.chosen_by.merit
        best = {
            name: max((merit(score), -number) for number, score in scores.items())
            for name, scores in self.search_scores().items()
        }
        return {system: -candidate for system, (_, candidate) in best.items()}

    def chosen(self) -> dict[str, Candidate]:
        """The candidate of every system whose model has a finished search run."""
        choices, chosen = self.choices(), dict[str, Candidate]()
        for system in self.systems:
            candidates = self.protocol.candidates(system)
            if len(candidates) == 1 or system.base in choices:
                chosen[system.name] = candidates[choices.get(system.base, 0)]
        return chosen

    def final_runs(self) -> list[Run]:
        """A run of every system that has a candidate, seed by seed; runs of the first seed keep their weights."""
        chosen = self.chosen()  # reads every result of the search
        return [
            self._run("final", "", self.config(system, candidate, seed), keep_weights=seed == self.seeds[0])
            for seed in self.seeds
            for system, candidate in chosen.items()
        ]

    def sweep_runs(self) -> list[Run]:
        """Runs of BPCM over the product of the sweep's settings."""
        chosen = self.chosen()
        if SWEPT not in chosen or not self.protocol.sweep:
            return []
        runs = []
        for values in itertools.product(*self.protocol.sweep.values()):
            point = [f"{setting}={value}" for setting, value in zip(self.protocol.sweep, values, strict=True)]
            config = self.config(SWEPT, chosen[SWEPT], self.seeds[0], point)
            runs.append(self._run("sweep", ",".join(point), config))
        return runs
