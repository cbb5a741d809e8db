"""From the outputs of a model to what is predicted: probabilities, expected values, quantiles."""

import torch
from torch import Tensor

from torchrec_mtl.modules.heads import predicted
from torchrec_mtl.tasks import TaskForest


def with_values(probabilities: Tensor, logits: Tensor, tasks: TaskForest) -> Tensor:
    """Returns the scores of rows, ``[N, S]``: p(task), then what each value is expected to be, or its quantiles.

    An expected value is from the impression on, ``p(step before) E[value | step before]``. A quantile cannot be: it is
    that of the rows where the step before happened.

    Args:
        probabilities: p(task) of the tasks that happen or not, ``[N, T]``.
        logits: outputs of the model, ``[N, L]``.
        tasks: the tasks.

    Example::

        >>> from torchrec_mtl import SquaredError, Task
        >>> tasks = TaskForest(Task("buy"), Task("spend", after="buy", kind=SquaredError()))
        >>> with_values(torch.tensor([[0.5]]), torch.tensor([[0.0, 30.0]]), tasks)
        tensor([[ 0.5000, 15.0000]])
    """
    columns = [probabilities]
    for place, task in enumerate(tasks.values, len(tasks.funnel)):
        found, parent = predicted(task.kind, logits[:, tasks.outputs[place]]), tasks.parents[place]
        columns.append(found * probabilities[:, [parent]] if task.kind.has_mean and parent is not None else found)
    return torch.cat(columns, dim=1)


def columns_of_scores(tasks: TaskForest) -> list[slice]:
    """Returns the columns of each task in what `with_values` returns."""
    ends, found = 0, list[slice]()
    for task in tasks.tasks:
        found.append(slice(ends, ends := ends + len(task.kind.columns(task.name))))
    return found


def largest_difference(scores: Tensor, expected: Tensor, tasks: TaskForest) -> float:
    """Returns how far scores ``[N, S]`` are from those expected: probabilities as they are, and values by their size.

    The size of an expected value is that where the step before happened: a difference of its probability counts once.

    Example::

        >>> from torchrec_mtl import SquaredError, Task
        >>> tasks = TaskForest(Task("buy"), Task("spend", after="buy", kind=SquaredError()))
        >>> largest_difference(torch.tensor([[0.5, 51.0]]), torch.tensor([[0.5, 50.0]]), tasks)
        0.01
    """
    scores, expected = scores.double(), expected.double()
    size = expected.abs()
    for parent, columns in zip(tasks.parents, columns_of_scores(tasks), strict=True):
        if parent is not None and columns.start >= len(tasks.funnel):
            size[:, columns] /= expected[:, [parent]].clamp(min=1e-9)
    return float(((scores - expected).abs() / size.clamp(min=1)).max())
