from torchrec_mtl.datasets.ali_ccp import published


def test_differences_from_the_published_figures() -> None:
    assert published.find_differences(published.NUM_ROWS, published.NUM_EMBEDDINGS) == []
    moved = {"train": 38_070_669, "valid": 4_229_236, "test": 43_016_614}  # another draw of valid
    assert published.find_differences(moved, published.NUM_EMBEDDINGS) == []
    assert published.find_differences({**moved, "train": 38_070_670}, published.NUM_EMBEDDINGS) == [
        "train and valid: 42,299,906 rows, not 42,299,905"
    ]
    assert published.find_differences({**moved, "test": 1}, {**published.NUM_EMBEDDINGS, "301": 5}) == [
        "test: 1 rows, not 43,016,614",
        "field 301: 5 ids, not 4",
    ]
    assert published.is_full_size(moved)
    assert not published.is_full_size({"train": 38_000, "valid": 4_000, "test": 43_000})
