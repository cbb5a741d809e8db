"""Figures of the true files under protocol "aitm", as the AITM authors' preparation gives them."""

from collections.abc import Mapping

NUM_ROWS = {"train": 38_070_670, "valid": 4_229_235, "test": 43_016_614}
NUM_EMBEDDINGS = {
    "101": 238_635,
    "121": 98,
    "122": 14,
    "124": 3,
    "125": 8,
    "126": 4,
    "127": 4,
    "128": 3,
    "129": 5,
    "205": 467_298,
    "206": 6_929,
    "207": 263_942,
    "216": 106_399,
    "508": 5_888,
    "509": 104_830,
    "702": 51_878,
    "853": 37_148,
    "301": 4,
}
VALID_MARGIN = 10_000  # five standard deviations of a tenth drawn by chance


def looks_true(num_rows: Mapping[str, int]) -> bool:
    """Whether the files are as large as the true ones, give or take 2 %."""
    wanted = NUM_ROWS["train"] + NUM_ROWS["valid"]
    return abs(num_rows["train"] + num_rows["valid"] - wanted) < 0.02 * wanted


def differences(num_rows: Mapping[str, int], num_embeddings: Mapping[str, int]) -> list[str]:
    """One sentence for each figure that is not as it should be.

    Which rows are in valid is drawn by chance, so train and valid are held to their sum, and valid to a margin.

    Example::

        >>> differences(NUM_ROWS, {**NUM_EMBEDDINGS, "122": 15})
        ['field 122: 15 ids, not 14']
    """
    told = []
    for splits, margin in (("train", "valid"), 0), (("valid",), VALID_MARGIN), (("test",), 0):
        found, wanted = (sum(rows[split] for split in splits) for rows in (num_rows, NUM_ROWS))
        if abs(found - wanted) > margin:
            told.append(f"{' and '.join(splits)}: {found:,} rows, not {wanted:,}")
    return told + [
        f"field {field}: {num_embeddings[field]:,} ids, not {wanted:,}"
        for field, wanted in NUM_EMBEDDINGS.items()
        if num_embeddings[field] != wanted
    ]
