import gzip
import os
import re
from pathlib import Path

import pytest

from tests.data.raw import forms
from torchrec_mtl.data.raw.files import RawFile, find_raw_file
from torchrec_mtl.errors import InputError

CONTENT = os.urandom(300_000)  # incompressible, so that a cut removes content
FILES = {"other.csv": b"other\n" * 1000, "log.csv": CONTENT}


def read(file: RawFile, piece: int = 10_000) -> bytes:
    with file.open() as stream:
        pieces = list(iter(lambda: stream.read(piece), b""))
        assert 0.9 < stream.share_read <= 1
    return b"".join(pieces)


@pytest.mark.parametrize("form", forms.FORMS)
def test_every_form_gives_the_same_content(tmp_path: Path, form: str) -> None:
    forms.write(tmp_path, FILES, form)
    file = find_raw_file(tmp_path, "log.csv")
    assert file.name == ("log.csv" if "tar" in form or form in ("plain", "tgz") else f"log.csv.{form}")
    assert read(file) == CONTENT
    assert read(file) == CONTENT  # again, from the start


@pytest.mark.parametrize("form", ["gz", "zst"])
def test_a_compressed_file_of_several_members(tmp_path: Path, form: str) -> None:
    file = tmp_path / f"log.csv.{form}"
    file.write_bytes(forms.compress(b"one\n", form) + forms.compress(b"two\n", form))
    assert read(find_raw_file(tmp_path, "log.csv")) == b"one\ntwo\n"


@pytest.mark.parametrize("form", ["gz", "zst", "tar", "tar.gz", "tgz", "tar.zst"])
@pytest.mark.parametrize("kept", [0.3, 0.9, 0.9999])
def test_cut_short(tmp_path: Path, form: str, kept: float) -> None:
    (file,) = forms.write(tmp_path, {"log.csv": CONTENT}, form)
    content = file.read_bytes()
    end = len(CONTENT) if form == "tar" else len(content)  # a tar ends in padding, which may be cut
    file.write_bytes(content[: int(kept * end)])
    with pytest.raises(InputError, match=re.escape(f"{file}") + ".*damaged or cut short"):
        read(find_raw_file(tmp_path, "log.csv"))


@pytest.mark.parametrize("form", ["gz", "zst", "tar.gz", "tar.zst"])
def test_damaged(tmp_path: Path, form: str) -> None:
    (file,) = forms.write(tmp_path, {"log.csv": b"abcdefg\n" * 100_000}, form)
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 20] = bytes(20)
    file.write_bytes(content)
    with pytest.raises(InputError, match="damaged or cut short"):
        read(find_raw_file(tmp_path, "log.csv"))


def test_content_that_contradicts_the_name(tmp_path: Path) -> None:
    for name in ("a.csv.gz", "b.csv.zst"):
        (tmp_path / name).write_bytes(b"plain text, longer than a header\n" * 10)
        with pytest.raises(InputError, match=f"{name}: cannot be read to its end"):
            read(find_raw_file(tmp_path, name[:5]))


def test_archives_with_the_hint_are_searched_first(tmp_path: Path) -> None:
    forms.write(tmp_path, {"log_test.csv": b"test\n"}, "tar.gz", "a_test")
    (tmp_path / "b_train.tar.gz").write_bytes(gzip.compress(b"no archive, and never opened"))
    assert read(find_raw_file(tmp_path, "log_test.csv", "test")) == b"test\n"


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"log\.csv: no such file, plain, \.gz or \.zst$"):
        find_raw_file(tmp_path, "log.csv")
    forms.write(tmp_path, {"other.csv": b"1\n"}, "tar")
    with pytest.raises(InputError, match=re.escape("nor is it in ['download.tar']")):
        find_raw_file(tmp_path, "log.csv")
    with pytest.raises(InputError, match=re.escape(f"`raw` (='{tmp_path}/none') must be a folder")):
        find_raw_file(tmp_path / "none", "log.csv")


def test_two_forms_of_one_file(tmp_path: Path) -> None:
    forms.write(tmp_path, FILES, "plain")
    forms.write(tmp_path, FILES, "gz")
    with pytest.raises(InputError, match=re.escape("must have one form of log.csv, not ['log.csv', 'log.csv.gz']")):
        find_raw_file(tmp_path, "log.csv")


def test_a_missing_member(tmp_path: Path) -> None:
    (file,) = forms.write(tmp_path, FILES, "tar")
    with pytest.raises(InputError, match="member 'none' is missing"), RawFile(file, "none").open():
        pass
