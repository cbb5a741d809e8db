"""Hashes of keys that are equal on every machine and in every language."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from torchrec_mtl.data.lists import Array, concatenate_ranges
from torchrec_mtl.data.raw.hashes import finalise, mix


def stable_hashes(keys: pa.Array) -> Array:
    """Returns 64-bit hashes (uint64) of integers or strings; that of a missing key means nothing.

    An integer is scattered by SplitMix64's last steps. The UTF-8 bytes ``b_i`` of a string give
    ``sum((b_i + 1) * mix(i))`` modulo 2^64, scattered likewise, where ``mix(i)`` are SplitMix64's hashes of 0, 1, ...

    Example::

        >>> stable_hashes(pa.array(["Rome", "Bonn", "Rome"])).tolist()
        [9379930140120160959, 6481579986716748972, 9379930140120160959]
    """
    if pa.types.is_integer(keys.type):
        return finalise(pc.fill_null(keys, 0).to_numpy(zero_copy_only=False).astype(np.uint64))
    encoded = keys.cast(pa.large_string()).dictionary_encode()
    hashes = np.append(_hashes_of_texts(encoded.dictionary), np.uint64(0))
    return hashes[pc.fill_null(encoded.indices, len(hashes) - 1).to_numpy(zero_copy_only=False)]


def _hashes_of_texts(texts: pa.Array) -> Array:
    if not len(texts):
        return np.empty(0, np.uint64)
    _, offset_bytes, data = texts.buffers()
    offsets = np.frombuffer(offset_bytes, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    lengths = np.diff(offsets)
    text = np.frombuffer(data or b"", np.uint8)[offsets[0] : offsets[-1]].astype(np.uint64)
    places = concatenate_ranges(np.zeros(len(texts), np.int64), lengths)
    factors = mix(np.arange(lengths.max(initial=0)), 0)
    running = np.concatenate([[np.uint64(0)], ((text + np.uint64(1)) * factors[places]).cumsum()])
    ends = offsets - offsets[0]
    return finalise(running[ends[1:]] - running[ends[:-1]])
