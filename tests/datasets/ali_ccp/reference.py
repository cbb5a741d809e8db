"""The format and both protocols in plain Python, one line at a time, written only from their description."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

AITM_FIELDS = [
    *("101", "121", "122", "124", "125", "126", "127", "128", "129"),
    *("205", "206", "207", "216", "508", "509", "702", "853", "301"),
]
ALL_FIELDS = {*AITM_FIELDS, "109_14", "110_14", "127_14", "150_14", "210"}
DIGITS = set("0123456789")
Feature = tuple[str, int, float]


@dataclass
class Line:
    key: int
    features: list[Feature]
    click: int = 0
    purchase: int = 0


def integer(text: str, most_digits: int = 18) -> int:
    """Reads a positive integer without a leading zero."""
    if not text or len(text) > most_digits or not set(text) <= DIGITS or text[0] == "0":
        raise ValueError(text)
    return int(text)


def decimal(text: str) -> float:
    whole, dot, fraction = text.removeprefix("-").partition(".")
    if not 1 <= len(whole) <= 9 or not set(whole + fraction) <= DIGITS or bool(dot) != bool(fraction):
        raise ValueError(text)
    if len(fraction) > 17:
        raise ValueError(text)
    return float(text)


def parse(line: str, skeleton: bool) -> Line | None:
    """Parses a line; None if it is bad."""
    try:
        values = line.split(",")
        if len(values) != (6 if skeleton else 3):
            return None
        click = purchase = "0"
        if skeleton:
            integer(values[0])
            click, purchase = values[1:3]
        key, num_features, text = values[-3:]
        if len(key) != 16 or not set(key) <= DIGITS | set("abcdef") or {click, purchase} - {"0", "1"}:
            return None
        if not 1 <= len(num_features) <= 6 or not set(num_features) <= DIGITS:
            return None
        features = [feature(part) for part in text.split("\x01")]
    except ValueError:
        return None
    if int(num_features) != len(features):
        return None
    return Line(int(key, 16), features, int(click), int(purchase))


def feature(text: str) -> Feature:
    field, rest = text.split("\x02")
    number, value = rest.split("\x03")
    if field not in ALL_FIELDS:
        raise ValueError(field)
    return field, integer(number), decimal(value)


def read(raw: Path, split: str) -> list[tuple[Line, Line]]:
    """Reads impressions, each with its common features; every line must be good."""
    files = [(raw / f"{kind}_{split}.csv").read_text("latin-1") for kind in ("common_features", "sample_skeleton")]
    common = {line.key: line for line in (parse(text, False) for text in files[0].splitlines())}
    return [(line, common[line.key]) for line in (parse(text, True) for text in files[1].splitlines())]


def aitm(raw: Path) -> tuple[dict[str, list[tuple]], dict[str, dict[int, int]]]:
    """Returns rows of click, purchase and 18 codes by split, and the code of each raw id by field."""
    rows = {}
    for split in ("train", "test"):
        rows[split] = []
        for line, common in read(raw, split):
            if line.purchase and not line.click:
                continue
            ids = {field: number for field, number, _ in line.features}
            ids.update({field: number for field, number, _ in common.features})
            rows[split].append((line.click, line.purchase, ids))
    codes = {}
    for field in AITM_FIELDS:
        counts = Counter(ids[field] for _, _, ids in rows["train"] if field in ids)
        kept = sorted(number for number, count in counts.items() if count >= 12)
        codes[field] = {number: code for code, number in enumerate(kept, 1)}
    coded = {
        split: [
            (click, purchase, *(codes[field].get(ids.get(field), 0) for field in AITM_FIELDS))
            for click, purchase, ids in split_rows
        ]
        for split, split_rows in rows.items()
    }
    return coded, codes


def same(left: float, right: float) -> bool:
    """Whether two numbers are equal up to float32."""
    return math.isclose(left, right, rel_tol=1e-6)
