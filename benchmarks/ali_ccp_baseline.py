"""The AITM authors' preparation of Ali-CCP in plain Python: the steps that they published, one line at a time.

Common features become a dict of dicts. Each impression's features are a dict that is updated with its common ones; its
18 fields are written to a file as text, and their values counted. Values seen 12 times or more are numbered. The file
is then read again and written as numbers, a tenth of train to valid. Rows with a purchase and no click are dropped.
"""

import random
import re
from collections import Counter
from pathlib import Path

import numpy as np

FIELDS = [str(n) for n in (101, 121, 122, *range(124, 130), 205, 206, 207, 216, 508, 509, 702, 853, 301)]
SEPARATORS = re.compile("\x01|\x02|\x03")


def features(text: str) -> dict[str, str]:
    """Returns values by field, by way of an array of strings as in the published steps."""
    parts = np.array(SEPARATORS.split(text))
    return dict(zip(parts[0::3], parts[1::3], strict=True))


def join(raw: Path, split: str, joined: Path, counts: dict[str, Counter[str]]) -> int:
    """Writes labels and values as text, and counts the values; returns the number of rows."""
    num_rows = 0
    with (raw / f"common_features_{split}.csv").open() as lines:
        common = {key: features(text) for key, _, text in (line.strip().split(",") for line in lines)}
    with (raw / f"sample_skeleton_{split}.csv").open() as lines, joined.open("w") as out:
        for line in lines:
            _, click, purchase, key, _, text = line.strip().split(",")
            if click == "0" and purchase == "1":
                continue
            of_row = features(text)
            of_row.update(common[key])
            out.write(",".join([click, purchase, *(of_row.get(field, "0") for field in FIELDS)]) + "\n")
            num_rows += 1
            for field, counter in counts.items():
                if field in of_row:
                    counter[of_row[field]] += 1
    return num_rows


def encode(joined: Path, codes: dict[str, dict[str, int]], outputs: list[Path], seed: int) -> None:
    """Writes numbers; a tenth of the rows go to the last output."""
    rng, files = random.Random(seed), [output.open("w") for output in outputs]
    with joined.open() as lines:
        for line in lines:
            values = line.strip().split(",")
            numbers = [str(codes[field].get(value, 0)) for field, value in zip(FIELDS, values[2:], strict=True)]
            file = files[-1 if rng.random() >= 0.9 else 0]
            file.write(",".join(values[:2] + numbers) + "\n")
    for file in files:
        file.close()


def prepare(raw: Path, folder: Path, seed: int = 0) -> tuple[int, dict[str, int]]:
    """Returns the number of rows, and the number of ids of each field, with 0."""
    counts = {field: Counter[str]() for field in FIELDS}
    num_rows = join(raw, "train", folder / "train.tmp", counts)
    kept = {field: sorted(value for value, n in counts[field].items() if n >= 12) for field in FIELDS}
    codes = {field: {value: code for code, value in enumerate(kept[field], 1)} for field in FIELDS}
    encode(folder / "train.tmp", codes, [folder / "train.csv", folder / "valid.csv"], seed)
    num_rows += join(raw, "test", folder / "test.tmp", {})
    encode(folder / "test.tmp", codes, [folder / "test.csv"], seed)
    return num_rows, {field: len(codes[field]) + 1 for field in FIELDS}
