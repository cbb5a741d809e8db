"""Fits LightGBM: ``python lightgbm_worker.py in.npz out.npy``, in an environment that has it."""

import sys

import lightgbm
import numpy as np

SETTINGS = {"objective": "binary", "learning_rate": 0.05, "min_data_per_group": 20, "num_threads": 1, "verbose": -1}
MOST_TREES, PATIENCE = 1000, 30


def main(source: str, target: str) -> None:
    """Reads ids and labels, and writes probabilities; validation chooses the number of trees."""
    with np.load(source) as arrays:
        given = {name: arrays[name] for name in arrays.files}
    fields = list(range(given["train_ids"].shape[1]))
    train = lightgbm.Dataset(given["train_ids"], given["train_labels"], categorical_feature=fields)
    valid = train.create_valid(given["valid_ids"], given["valid_labels"])
    stop = lightgbm.early_stopping(PATIENCE, verbose=False)
    booster = lightgbm.train(SETTINGS, train, MOST_TREES, [valid], callbacks=[stop])
    np.save(target, booster.predict(given["test_ids"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
