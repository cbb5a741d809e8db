from torchrec_mtl.datasets.ali_ccp import published


def test_golden_figures_that_differ() -> None:
    assert published.differences(published.NUM_ROWS, published.NUM_EMBEDDINGS) == []
    moved = {"train": 38_070_669, "valid": 4_229_236, "test": 43_016_614}  # another draw of valid
    assert published.differences(moved, published.NUM_EMBEDDINGS) == []
    assert published.differences({**moved, "train": 38_070_670}, published.NUM_EMBEDDINGS) == [
        "train and valid: 42,299,906 rows, not 42,299,905"
    ]
    assert published.differences({**moved, "test": 1}, {**published.NUM_EMBEDDINGS, "301": 5}) == [
        "test: 1 rows, not 43,016,614",
        "field 301: 5 ids, not 4",
    ]
    assert published.looks_true(moved)
    assert not published.looks_true({"train": 38_000, "valid": 4_000, "test": 43_000})
