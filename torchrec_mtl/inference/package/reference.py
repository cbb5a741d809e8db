"""How rows and scores of the validation split were, so that a service can say how far those it sees have moved.

The validation split, not the training rows: every id of these is known, and the model's scores of them are too sure.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from torchrec_mtl.argument_types import check_fields
from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.table.drift import FieldCounts
from torchrec_mtl.errors import InputError
from torchrec_mtl.files import read_json, to_json, write_whole
from torchrec_mtl.tasks import TaskForest

REFERENCE_FILE = "reference.json"
NUM_BINS = 10  # at most, of the scores of a task, each with about as many of them


@dataclass(frozen=True)
class Reference:
    """What rows and scores are compared with.

    Args:
        edges: rising probabilities between the bins of a task's scores, by task.
        scores: number of scores in each bin, by task.
        fields: number of values, missing and unknown ones, by field.

    Example::

        >>> from torchrec_mtl.tasks import TaskChain
        >>> reference = Reference.of(np.linspace(0, 1, 100)[:, None], TaskChain(["click"]), {})
        >>> reference.scores["click"]
        (10, 10, 10, 10, 10, 10, 10, 10, 10, 10)
        >>> reference.bins("click", np.array([0.05, 0.01, 0.99])).tolist()
        [2, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    """

    edges: Mapping[str, tuple[float, ...]]
    scores: Mapping[str, tuple[int, ...]]
    fields: Mapping[str, FieldCounts]

    def __post_init__(self) -> None:
        check_fields(self)

    @classmethod
    def of(cls, marginal: Array, tasks: TaskForest, fields: Mapping[str, FieldCounts]) -> "Reference":
        """Returns the reference of p(task) or means ``[N, T]``, and of the counts of the same rows.

        Quantiles have no mean, and no reference.
        """
        cuts = np.linspace(0, 1, NUM_BINS + 1)[1:-1]
        of_tasks = {name: marginal[:, n] for n, name in enumerate(tasks) if tasks.tasks[n].kind.has_mean}
        edges = {name: tuple(np.unique(np.quantile(found, cuts)).tolist()) for name, found in of_tasks.items()}
        scores = {name: tuple(_bins(edges[name], found).tolist()) for name, found in of_tasks.items()}
        return cls(edges, scores, fields)

    def bins(self, task: str, probabilities: Array) -> Array:
        """Returns how many of the probabilities ``[N]`` are in each bin of a task, as ``scores`` has them."""
        return _bins(self.edges[task], probabilities)

    def save(self, folder: Path) -> Path:
        """Writes ``reference.json`` into ``folder``, and returns its path."""
        write_whole(folder / REFERENCE_FILE, to_json(asdict(self), indent=1) + "\n")
        return folder / REFERENCE_FILE

    @classmethod
    def load(cls, folder: Path) -> "Reference":
        """Reads what `save` wrote; raises `InputError` if it is anything else."""
        content = read_json(folder / REFERENCE_FILE)
        try:
            edges, scores = ({task: tuple(of) for task, of in content[name].items()} for name in ("edges", "scores"))
            fields = {name: FieldCounts(**{**of, "bins": tuple(of["bins"])}) for name, of in content["fields"].items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{folder / REFERENCE_FILE}: a value is missing or of the wrong kind ({error})") from error
        return cls(edges, scores, fields)


def _bins(edges: tuple[float, ...], probabilities: Array) -> Array:
    return np.bincount(np.searchsorted(edges, probabilities, side="right"), minlength=len(edges) + 1)
