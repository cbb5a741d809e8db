from pathlib import Path

import polars as pl
import pytest

from torchrec_mtl.data.raw.split_files import SplitFiles
from torchrec_mtl.errors import InputError


@pytest.mark.parametrize("long_lists", [False, True])
def test_files_grow(tmp_path: Path, long_lists: bool) -> None:
    parts = [
        pl.DataFrame({"ids": [[1, 2], [3]]}),
        pl.DataFrame({"ids": [[1, 2]]}),
        pl.DataFrame({"ids": [[9]]}).clear(),
    ]
    with SplitFiles(tmp_path, long_lists) as files:
        for part in parts:
            files.write("train", part)
            files.write("test", part)
        files.write("valid", parts[-1])
    assert files.num_rows == {"train": 3, "valid": 0, "test": 3}
    assert pl.read_parquet(tmp_path / "train.parquet").equals(pl.concat(parts))
    assert pl.read_parquet(tmp_path / "valid.parquet").is_empty()
    with pytest.raises(InputError, match=r"`raw` \(='raw'\): no row is left for valid"):
        files.check_not_empty("raw")
