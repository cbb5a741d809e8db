"""How many ids of a data set a field's row for unknown ids stands for."""

from collections.abc import Mapping

from torchrec_mtl.data import Split, StreamedSplit


def unknown_ids(splits: Mapping[str, Split | StreamedSplit]) -> list[str]:
    """A sentence for each field and split in which ids are unknown, with their number and share; one sentence for
    streams, in which they are not counted.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> from torchrec_mtl.data import Field, Schema
        >>> schema = Schema("shop", [Field("store", 9, unknown_row=0)], TaskChain(["click"]))
        >>> unknown_ids({"test": Split(schema, {"store": [4, 9, 8, 7]}, labels=[[0]] * 4)})
        ["test split: 1 of 4 ids of 'store' (25.00 %) are unknown, row 0 stands for them"]
    """
    rows = {field.name: field.unknown_row for split in splits.values() for field in split.schema.fields}
    if any(isinstance(split, StreamedSplit) for split in splits.values()) and set(rows.values()) != {None}:
        return ["data that are read in place: unknown ids are not counted"]
    return [
        f"{name} split: {unknown:,} of {ids:,} ids of {field!r} ({100 * unknown / ids:.2f} %) are unknown, "
        f"row {rows[field]} stands for them"
        for name, split in splits.items()
        for field, (unknown, ids) in split.num_unknown.items()
        if unknown
    ]
