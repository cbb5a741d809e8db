"""Good and bad lines of a block, compared with Python's regular expressions."""

import io
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrec_mtl.data.raw import lines
from torchrec_mtl.data.raw.files import RawFile
from torchrec_mtl.data.raw.lines import (
    NOT_ENDED,
    BadLine,
    Block,
    bad_lines,
    explain_lines,
    good_lines,
    map_in_order,
    read_blocks,
    read_lines,
)
from torchrec_mtl.errors import InputError


class Stream:
    """A stream for `read_blocks` that returns fewer bytes than requested, as a decompressor does."""

    file = RawFile(Path("log.csv"))

    def __init__(self, content: bytes, at_most: int) -> None:
        self.content, self.at_most = io.BytesIO(content), at_most

    def read(self, num_bytes: int) -> bytes:
        return self.content.read(min(num_bytes, self.at_most))


contents = st.binary(min_size=1, max_size=200).map(lambda content: content.replace(b"\xff", b"\n"))


@given(contents, st.integers(1, 50), st.integers(1, 9))
def test_blocks_keep_lines_and_their_numbers(content: bytes, block_bytes: int, at_most: int) -> None:
    stream: Any = Stream(content, at_most)
    found = list(read_blocks(stream, block_bytes))
    lines = [(block.first_line + i, line) for block in found for i, line in enumerate(block.text.split("\n"))]
    expected = content.decode("latin-1").removesuffix("\n").split("\n")
    assert lines == list(enumerate(expected, 1))
    assert found[-1].last_line == len(expected)
    assert [block.ended for block in found] == [True] * (len(found) - 1) + [content.endswith(b"\n")]


def test_an_empty_file() -> None:
    stream: Any = Stream(b"", 1)
    with pytest.raises(InputError, match=r"^log\.csv: must not be empty$"):
        list(read_blocks(stream))


def test_an_endless_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1000)
    stream: Any = Stream(b"first\n" + b"x" * 5000, 100)
    with pytest.raises(InputError, match=r"^log\.csv, line 2: must be shorter than 1000 bytes$"):
        list(read_blocks(stream, 100))


def test_results_are_in_order_and_few_items_wait() -> None:
    started, drawn = [], []

    def items() -> Any:
        for item in range(50):
            drawn.append(item)
            yield item

    def work(item: int) -> int:
        started.append(item)
        time.sleep(0.005 if item % 7 == 0 else 0)
        return item * item

    for position, result in enumerate(map_in_order(work, items(), num_threads=3)):
        assert result == position**2
        assert len(drawn) <= position + 1 + 4
    assert len(started) == 50


def test_an_error_stops_the_others() -> None:
    seen, lock = [], threading.Lock()

    def work(item: int) -> int:
        with lock:
            seen.append(item)
        if item == 3:
            raise InputError("bad")
        return item

    with pytest.raises(InputError, match="bad"):
        list(map_in_order(work, range(1000), num_threads=2))
    assert len(seen) < 10


def test_progress_ends_with_all_lines(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(b"a\nb\nc\n")
    calls = []
    file = RawFile(tmp_path / "log.csv")
    results = read_lines(file, lambda block: block.text, "log", lambda *progress: calls.append(progress), 2)
    assert list(results) == ["a\nb\nc"]
    assert calls[-1] == ("log", 3, 1.0)


PATTERN = "[0-9]+,(?:a|NULL|)"
any_line = st.text(st.characters(max_codepoint=255, exclude_characters="\n"), max_size=8)
some_lines = st.lists(st.sampled_from(["1,a", "27,", "3,NULL", "", "4,a\r", "x,a", "\xe9"]) | any_line, min_size=1)


@given(some_lines, st.integers(1, 10**12), st.booleans())
def test_every_line_is_good_or_explained(texts: list[str], first_line: int, ended: bool) -> None:
    block = Block(first_line, "\n".join(texts).encode("latin-1"), ended)
    data, numbers = good_lines(block, PATTERN)
    matching = [bool(re.fullmatch(PATTERN, text)) for text in texts]
    if not ended:
        matching[-1] = False
    numbered = list(zip(range(first_line, first_line + len(texts)), texts, matching, strict=True))
    assert numbers.tolist() == [number for number, _, good in numbered if good]
    assert data == "".join(f"{text}\n" for text, good in zip(texts, matching, strict=True) if good).encode()
    bad = bad_lines(block, numbers, lambda text: f"why {text}")
    assert [(line.number, line.text) for line in bad] == [(number, text) for number, text, good in numbered if not good]
    last = None if ended else block.last_line
    assert [line.reason for line in bad] == [NOT_ENDED if line.number == last else f"why {line.text}" for line in bad]


def test_explained_lines_keep_the_order_of_their_numbers() -> None:
    block = Block(7, b"a\nb\nc")
    assert explain_lines(block, [9, 7], str.upper) == [BadLine(9, "c", "C"), BadLine(7, "a", "A")]


@pytest.mark.parametrize("data", [b"1,a\n2,", b"1,a\n2,\n"])
def test_an_empty_last_line_is_a_line(data: bytes) -> None:
    _, numbers = good_lines(Block(1, data), PATTERN)
    assert numbers.tolist() == [1, 2]
    assert len(bad_lines(Block(1, data), numbers, str)) == data.count(b"\n") - 1
