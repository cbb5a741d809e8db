"""Every system of the funnel, trained without most negatives of a simulation whose probabilities are known."""

import numpy as np
import pytest
import torch
from torchrec import EmbeddingBagCollection

from tests import VERIFY
from tests.support import MODELS
from torchrec_mtl import MultiTaskTrain
from torchrec_mtl.data import BatchLoader, Split
from torchrec_mtl.datasets.synthetic.funnel import SyntheticFunnel
from torchrec_mtl.metrics import auc
from torchrec_mtl.modules import FeatureArch

TRAINED = MODELS if VERIFY else ("shared_bottom", "esmm", "bpcm")
FUNNEL = SyntheticFunnel(base_rates=(0.1, 0.03, 0.01), field_sizes=(30, 20), num_pairs=1, interaction=0.0)


def split_of(num_rows, seed):
    rows = FUNNEL.sample(num_rows, seed)
    ids = {field.name: rows[field.name].to_numpy() for field in FUNNEL.schema.fields}
    tasks = list(FUNNEL.schema.tasks)
    return Split(FUNNEL.schema, ids, rows.select(tasks).to_numpy()), rows.select([f"p_{t}" for t in tasks]).to_numpy()


def trained(name, split, negative_rate):
    torch.manual_seed(0)
    system, tasks = MODELS[name], FUNNEL.schema.tasks
    tables = EmbeddingBagCollection(tables=FUNNEL.schema.embedding_configs(4))
    model = system.model(FeatureArch(tables), tasks, **{**system.small, **system.model_args})
    model.start_from_base_rates(split.base_rates())
    train_model = MultiTaskTrain(model, system.loss(tasks, **system.loss_args))
    optimizer = torch.optim.Adam(train_model.parameters(), 0.01)
    loader = BatchLoader(split, 2000, shuffle=True, negative_rate=negative_rate)
    num_epochs = 4
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, num_epochs * len(loader))
    for epoch in range(num_epochs):
        loader.set_epoch(epoch)
        for batch in loader:
            optimizer.zero_grad()
            loss, (_, logits, _) = train_model(batch)
            (loss * len(logits) / batch.num_rows_of_all).backward()  # as `torchrec_mtl.training.step` does
            optimizer.step()
            decay.step()
    return model.eval()


def mean_logit_errors(logits, truth):
    """How far log mean probabilities are from the truth, over all rows and over the likeliest fifth, [T]."""
    p, likely = logits.sigmoid().numpy(), truth > np.quantile(truth, 0.8, axis=0)
    over_all = np.log(p.mean(0) / truth.mean(0))
    return np.array([over_all, np.log((p * likely).sum(0) / (truth * likely).sum(0))])


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_probabilities_are_right_and_rankings_no_worse(name):
    """As right as those of all rows, which the smallest models fit badly; uncorrected, they would be off by 1.5 or
    more."""
    split, _ = split_of(60_000, seed=1)
    test, truth = split_of(20_000, seed=2)
    rows, errors, ranked = test.batch(torch.arange(len(test))), {}, {}
    for rate in (1.0, 0.1):
        logits = trained(name, split, rate)(rows.dense_features, rows.sparse_features).detach()
        errors[rate] = mean_logit_errors(logits, truth)
        ranked[rate] = np.mean([auc(logits[:, task], rows.labels[:, task]) for task in range(3)])
    assert (np.abs(errors[0.1]) < np.abs(errors[1.0]) + 0.15).all()
    assert ranked[0.1] > ranked[1.0] - 0.03
