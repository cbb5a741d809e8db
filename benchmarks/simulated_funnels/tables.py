"""Two models of ids alone, each for one label: logistic regression on one-hot ids, and LightGBM on categories."""

import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from benchmarks.simulated_funnels.funnels import FIELD_SIZES, Drawn
from tests.peers.environment import python_with
from torchrec_mtl.data.lists import Array

INVERSE_PENALTIES = (0.03, 0.1, 0.3, 1.0)  # of which validation chooses


class Rows(NamedTuple):
    """Ids ``[N, F]`` and one label ``[N]`` to train on and to validate, and the ids to predict for."""

    train_ids: Array
    train_labels: Array
    valid_ids: Array
    valid_labels: Array
    test_ids: Array


def logistic_regression(rows: Rows) -> Array:
    """Fits, and returns probabilities."""
    train, valid = _one_hot(rows.train_ids), _one_hot(rows.valid_ids)
    best, found = float("inf"), None
    for inverse in INVERSE_PENALTIES:
        model = LogisticRegression(C=inverse, tol=1e-3, max_iter=200)
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            model.fit(train, rows.train_labels)
        score = log_loss(rows.valid_labels, model.predict_proba(valid)[:, 1], labels=[0, 1])
        if score < best:
            best, found = score, model
    assert found is not None
    return found.predict_proba(_one_hot(rows.test_ids))[:, 1]


def light_gbm(rows: Rows) -> Array:
    """Fits in a process that has LightGBM, and returns probabilities."""
    worker = Path(__file__).with_name("lightgbm_worker.py")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "rows.npz", Path(folder) / "found.npy"
        np.savez(source, **rows._asdict())
        subprocess.run([python_with("lightgbm"), worker, source, target], check=True)
        return np.load(target)


FITS: dict[str, Callable[[Rows], Array]] = {"logistic regression": logistic_regression, "LightGBM": light_gbm}


def predictions(fit: Callable[[Rows], Array], drawn: Drawn) -> dict[str, tuple[Array, Array]]:
    """P(click) and P(buy) of the test rows, of both ways: P(buy | click) fitted on clicked rows, or P(buy) on all."""
    labels = {split: np.asarray(rows.arrays["labels"]) for split, rows in drawn.splits.items()}

    def fitted(task: int, clicked: bool) -> Array:
        kept = {split: rows[:, 0] == 1 if clicked else slice(None) for split, rows in labels.items()}
        of = [(drawn.ids[split][kept[split]], labels[split][kept[split], task]) for split in ("train", "valid")]
        return fit(Rows(*of[0], *of[1], drawn.ids["test"]))

    click = fitted(0, clicked=False)
    return {
        "clicked rows": (click, click * fitted(-1, clicked=True)),
        "entire space": (click, fitted(-1, clicked=False)),
    }


def _one_hot(ids: Array) -> csr_matrix:
    starts = np.cumsum([0, *FIELD_SIZES[:-1]])
    ends = np.arange(len(ids) + 1) * len(FIELD_SIZES)
    return csr_matrix((np.ones(ids.size), (ids + starts).ravel(), ends), shape=(len(ids), sum(FIELD_SIZES)))
