"""The fuzzer of readers, without atheris: an input of every file is read, and a difference is found."""

import pytest

from tests.datasets import fuzz_lines
from tests.datasets.fuzz_lines import FORMATS, TOKENS, fuzz_one, write_seeds


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_good_and_bad_lines_are_read_once_there_are_enough(name, monkeypatch, tmp_path):
    monkeypatch.setattr(fuzz_lines, "LINES_AT_ONCE", 2)
    files = FORMATS[name]()
    write_seeds(files, TOKENS[name], tmp_path / "corpus")
    for file, seed in zip(files, sorted((tmp_path / "corpus").iterdir()), strict=True):
        fuzz_one(files, seed.read_bytes())
        assert file.pending == [file.good]
        fuzz_one(files, seed.read_bytes() + b"\n\xff,bad\r")
        assert file.pending == []
    assert (tmp_path / "corpus.dict").read_text().count("\n") == len(TOKENS[name].split())
    fuzz_one(files, b"")


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_line_that_reads_differently_is_found(name, monkeypatch):
    monkeypatch.setattr(fuzz_lines, "LINES_AT_ONCE", 3)
    files, tried = FORMATS[name](), []

    def differ(lines, ended=True):
        tried.append(lines)
        assert "odd" not in lines

    files[0].agree = differ
    with pytest.raises(AssertionError):
        fuzz_one(files, b"\x00a\nodd\nb")
    assert tried == [["a", "odd", "b"], ["a"], ["odd"]]
