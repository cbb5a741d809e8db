"""Fingerprints of data: equal only if the fields, the tasks and all values are equal."""

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from torchrec_mtl.data.lists import Array
from torchrec_mtl.data.schema import Schema

# Options of a field that data from before them does not have, and keeps its fingerprint
_ADDED = {
    "unknown_row": None,
    "shares": None,
    "embedding_dim": None,
    "pooling": "sum",
    "init_std": None,
    "num_rows": None,
}


def columns_text(schema: Schema) -> str:
    """The columns of ``schema`` and their meaning, in one line; names, counts and notes are left out."""
    content = asdict(replace(schema, name="any", num_rows={}, notes={}))
    for field in content["fields"]:
        for option, default in _ADDED.items():
            if field[option] == default:
                del field[option]
    content["tasks"]["tasks"] = schema.tasks.to_json()
    return json.dumps(content, allow_nan=False)


def fingerprint(schema: Schema, index: Mapping[str, Mapping[str, Any]]) -> str:
    """The fingerprint of a split, given the ``dtype``, ``shape`` and ``checksum`` of each of its arrays."""
    content = {name: [entry[key] for key in ("dtype", "shape", "checksum")] for name, entry in index.items()}
    return _short(f"{columns_text(schema)} {json.dumps(content, sort_keys=True)}")


def fingerprint_of_arrays(schema: Schema, arrays: Mapping[str, Array]) -> str:
    """The fingerprint of a split in memory; reads all of it."""
    index = {
        name: {
            "dtype": array.dtype.str,
            "shape": list(array.shape),
            "checksum": zlib.crc32(np.ascontiguousarray(array).data) if array.size else 0,
        }
        for name, array in arrays.items()
    }
    return fingerprint(schema, index)


def joined(fingerprints: Iterable[str]) -> str:
    """The fingerprint of a data set, given its splits' fingerprints in order."""
    return _short(" ".join(fingerprints))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
