import re
from pathlib import Path

import pytest

from torchrec_mtl.data.raw.bad_rows import BadRows
from torchrec_mtl.data.raw.files import RawFile
from torchrec_mtl.errors import InputError

FILE = RawFile(Path("raw/log.csv"))


def test_strict_raises_at_once_and_writes_nothing(tmp_path: Path) -> None:
    with BadRows("strict", 5, tmp_path) as rows, pytest.raises(InputError, match=r"^raw/log\.csv, line 9: too long$"):
        rows.add(FILE, 9, "row", "too long")
    assert list(tmp_path.iterdir()) == []


def test_quarantine_keeps_rows_unchanged(tmp_path: Path) -> None:
    with BadRows("quarantine", 2, tmp_path) as rows:
        rows.add(FILE, 9, "1,\xe9\x00,\r", "label")
        rows.add(RawFile(Path("a.tar"), "in/log.csv"), 10, "", "empty")
    assert (tmp_path / "bad_rows.tsv").read_bytes() == (
        b"raw/log.csv\t9\tlabel\t1,\xe9\x00,\r\na.tar: in/log.csv\t10\tempty\t\n"
    )
    assert rows.counts == {"log.csv": 2}
    assert rows.total == 2


def test_one_more_than_the_limit(tmp_path: Path) -> None:
    with BadRows("quarantine", 1, tmp_path) as rows:
        rows.add(FILE, 1, "row", "bad")
        sentence = "raw/log.csv, line 2: worse; that is more bad rows than `bad_rows_limit` (=1)"
        with pytest.raises(InputError, match="^" + re.escape(sentence)):
            rows.add(FILE, 2, "row", "worse")


@pytest.mark.parametrize(("policy", "limit", "message"), [("lax", 1, "`bad_rows` (='lax')"), ("strict", 0, "(=0)")])
def test_wrong_arguments(tmp_path: Path, policy: str, limit: int, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        BadRows(policy, limit, tmp_path)
