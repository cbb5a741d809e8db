"""Row and id counts of the published files under protocol "aitm", from the preparation of the AITM authors."""

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
VALID_MARGIN = 10_000  # rows: five standard deviations of a random tenth


def is_full_size(num_rows: Mapping[str, int]) -> bool:
    """Whether train and valid together have as many rows as published, give or take 2 %."""
    expected = NUM_ROWS["train"] + NUM_ROWS["valid"]
    return abs(num_rows["train"] + num_rows["valid"] - expected) < 0.02 * expected


def find_differences(num_rows: Mapping[str, int], num_embeddings: Mapping[str, int]) -> list[str]:
    """Returns a phrase for each figure that differs from the published one.

    The rows of valid are a random draw, so the sum of train and valid must be exact, but valid alone has a margin.

    Example::

        >>> find_differences(NUM_ROWS, {**NUM_EMBEDDINGS, "122": 15})
        ['field 122: 15 ids, not 14']
    """
    differences = []
    for splits, margin in (("train", "valid"), 0), (("valid",), VALID_MARGIN), (("test",), 0):
        found, expected = (sum(rows[split] for split in splits) for rows in (num_rows, NUM_ROWS))
        if abs(found - expected) > margin:
            differences.append(f"{' and '.join(splits)}: {found:,} rows, not {expected:,}")
    return differences + [
        f"field {field}: {num_embeddings[field]:,} ids, not {expected:,}"
        for field, expected in NUM_EMBEDDINGS.items()
        if num_embeddings[field] != expected
    ]
