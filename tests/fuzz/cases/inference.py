"""Calibrations and predictors: scikit-learn's isotonic regression, and probabilities that a funnel can have."""

import math
from functools import cache

import numpy as np
import torch
from sklearn.isotonic import IsotonicRegression
from torchrec import EmbeddingBagCollection

from tests.fuzz.cases.data import CHAIN, SCHEMA, folder
from tests.fuzz.cases.datasets import trained_run
from tests.fuzz.cases.drawn import batch, integer, one_of
from tests.fuzz.cell import Case
from torchrec_mtl import Predictor, load_run, models
from torchrec_mtl.inference import Calibration, fit_calibration
from torchrec_mtl.inference.conditionals import conditional_log_odds
from torchrec_mtl.inference.package import export_package, load_package
from torchrec_mtl.modules import FeatureArch


def _rows(rng):
    num_rows = integer(rng, 30, 60)
    return {
        "logits": rng.normal(size=(num_rows, 3)).round(1),
        "labels": (rng.random((num_rows, 3)) < 0.8).cumprod(axis=1),
        "tasks": CHAIN,
        "method": one_of(rng, "isotonic", "platt"),
        "weights": one_of(rng, None, rng.integers(1, 4, (num_rows, 3)).astype(float)),
    }


def _fit(logits, labels, tasks, method, weights):
    return fit_calibration(logits, labels, tasks, method, weights), np.asarray(logits)


def _judge_fit(given, result):
    calibration, logits = result
    applied = calibration.apply(logits)
    assert ((applied > 0) & (applied < 1)).all()
    assert (np.diff(applied, axis=1) <= 0).all()
    if given["method"] == "isotonic":
        weights = np.ones(given["labels"].shape) if given["weights"] is None else given["weights"]
        odds, total = conditional_log_odds(logits, CHAIN)[:, 0], weights[:, 0].sum()
        oracle = IsotonicRegression().fit(odds, given["labels"][:, 0], sample_weight=weights[:, 0])
        least = 0.5 / (total + 1)
        np.testing.assert_allclose(applied[:, 0], oracle.predict(odds).clip(least, 1 - least), atol=1e-5)


def _calibration(rng):
    line = {"slope": float(rng.random() + 0.5), "intercept": 0.25}
    return {"tasks": CHAIN, "method": "platt", "maps": dict.fromkeys(CHAIN, line)}


def _judge_calibration(given, calibration):
    line = given["maps"]["click"]
    click = 1 / (1 + math.exp(-(line["slope"] * 0.5 + line["intercept"])))
    np.testing.assert_allclose(calibration.apply(np.array([[0.5, -0.5, -1.5]]))[0, 0], click)


@cache
def _model():
    torch.manual_seed(0)
    collection = EmbeddingBagCollection(tables=SCHEMA.embedding_configs(4))
    return models.SharedBottom(FeatureArch(collection, dense_in_features=2), CHAIN)


def _predictor(rng):
    return {
        "model": _model(),
        "schema": SCHEMA,
        "encoder": None,
        "calibration": one_of(rng, None, Calibration(**_calibration(rng))),
        "batch_size": integer(rng, 1, 5),
        "device": one_of(rng, "cpu", torch.device("cpu")),
    }


def _judge_predictor(given, predictor):
    rows = [{"f0": 3, "f1": 2, "f2": 1, "d0": 0.5, "d1": -0.5}] * 3
    found = predictor.predict(rows, values={"buy": 2.0})
    assert found.marginal.shape == (3, 3)
    np.testing.assert_allclose(found.score, 2 * found.marginal[:, 2])


def _load(rng):
    return {
        "folder": one_of(rng, str(trained_run()), trained_run()),
        "model": one_of(rng, None, "shared_bottom"),
        "system": None,
        "sharded": False,
        "device": "cpu",
    }


def _judge_load(given, run):
    assert not run.model.training
    assert all(torch.isfinite(each).all() for each in run.model.parameters())


def _package(rng):
    return {
        "model": _model(),
        "tasks": CHAIN,
        "output": _there(),  # as a path: another name would be compiled for
        "golden": batch(rng, CHAIN),
        "table_type": one_of(rng, "fp32", "fp16", "int8", "int4"),
        "unknown_rows": one_of(rng, None, {"f0": 1}),
        "calibration": None,
        "march": one_of(rng, "x86-64-v3", "x86-64-v4"),
    }


@cache
def _there():
    made = folder() / "there"
    made.mkdir()
    return made


def _judge_none(given, result):
    raise AssertionError("a package was made, or loaded, where there can be none")


PACKAGE = {  # right ones take a minute: tests/inference/test_package.py
    "export_package": Case(export_package, _package, _judge_none, refused=True),
    "load_package": Case(load_package, lambda rng: {"folder": str(_there())}, _judge_none, refused=True),
}
CASES = {
    "fit_calibration": Case(_fit, _rows, _judge_fit),
    "Calibration": Case(Calibration, _calibration, _judge_calibration),
}
TOP = {
    "Predictor": Case(Predictor, _predictor, _judge_predictor),
    "load_run": Case(load_run, _load, _judge_load),
}
