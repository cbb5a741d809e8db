from torchrec_mtl.data.ali_ccp import golden


def test_golden_figures_that_differ() -> None:
    assert golden.differences(golden.NUM_ROWS, golden.NUM_EMBEDDINGS) == []
    moved = {"train": 38_070_669, "valid": 4_229_236, "test": 43_016_614}  # another draw of valid
    assert golden.differences(moved, golden.NUM_EMBEDDINGS) == []
    assert golden.differences({**moved, "train": 38_070_670}, golden.NUM_EMBEDDINGS) == [
        "train and valid: 42,299,906 rows, not 42,299,905"
    ]
    assert golden.differences({**moved, "test": 1}, {**golden.NUM_EMBEDDINGS, "301": 5}) == [
        "test: 1 rows, not 43,016,614",
        "field 301: 5 ids, not 4",
    ]
    assert golden.looks_true(moved)
    assert not golden.looks_true({"train": 38_000, "valid": 4_000, "test": 43_000})
