"""Every model with every loss on a tree, and every model on tasks that have nothing to do with each other."""

import pytest
import torch

from tests.support import MODELS, TREE, batch, build, tasks_for, train_model
from torchrec_mtl import MultiTaskTrain, Task, TaskForest
from torchrec_mtl.errors import InputError
from torchrec_mtl.losses import CrossEntropyLoss
from torchrec_mtl.systems import LOSSES
from torchrec_mtl.training.train_wrapper import OF_BATCH, reads_beyond_logits

APART = TaskForest(Task("income"), Task("never_married"))
# models that cannot do without edges
FOLLOW_EDGES = ("resflow", "dbmtl", "esmm", "escm2_ips", "escm2_dr", "dcmt", "ddpo", "aitm", "bpcm")


def rows_of(tasks, size=24):
    rows = batch(size)
    generator = torch.Generator().manual_seed(1)
    happened = (torch.rand(size, len(tasks), generator=generator) < 0.7).float()
    for task, parent in enumerate(tasks.parents):
        if parent is not None:
            happened[:, task] *= happened[:, parent]
    rows.labels = happened
    return rows


@pytest.mark.parametrize("name", MODELS)
def test_every_model_trains_on_a_tree(name):
    torch.manual_seed(0)
    trained, rows = train_model(name, TREE), rows_of(TREE)
    optimizer = torch.optim.Adam(trained.parameters(), 0.01)
    losses = []
    for _ in range(20):
        loss, (_, logits, _) = trained(rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert logits.shape == (24, 4)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", MODELS)
def test_unrelated_tasks_are_modelled_or_raise(name):
    if name in FOLLOW_EDGES:
        with pytest.raises(InputError, match=r"must have tasks of which some need another \(`after`\), not income"):
            train_model(name, APART)
        return
    _, (_, logits, _) = MultiTaskTrain(build(name, tasks=APART), CrossEntropyLoss(APART))(rows_of(APART))
    assert logits.shape == (24, 2)


@pytest.mark.parametrize("name", ["esmm", "escm2_dr", "dcmt", "ddpo"])
def test_conditional_models_keep_a_task_below_the_one_it_needs(name):
    model, rows = train_model(name, TREE).model, rows_of(TREE)
    p = model(rows.dense_features, rows.sparse_features).sigmoid()
    for parent, child in TREE.edges:
        assert (p[:, child] <= p[:, parent]).all()
    model.start_from_base_rates(torch.tensor([0.5, 0.2, 0.1, 0.02]))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("loss", LOSSES)
def test_any_loss_goes_with_any_model_that_returns_what_it_reads(model, loss):
    tasks = tasks_for(loss, TREE)
    built = train_model(model, tasks).model
    needed = [name for name, required in reads_beyond_logits(LOSSES[loss](tasks)).items() if required]
    lacking = [name for name in needed if name not in (*getattr(built, "output_names", ()), *OF_BATCH)]
    if lacking:
        message = rf"`loss` \(=\w+Loss\) reads '{lacking[0]}', which \w+ does not give: \['logits'"
        with pytest.raises(InputError, match=message):
            MultiTaskTrain(built, LOSSES[loss](tasks))
        return
    value, _ = MultiTaskTrain(built, LOSSES[loss](tasks))(rows_of(tasks))
    value.backward()
    assert value.isfinite()
