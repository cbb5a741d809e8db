"""Which lines of a block are good, held to Python's regular expressions."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrec_mtl.data.raw.blocks import Block
from torchrec_mtl.data.raw.lines import NOT_ENDED, BadLine, bad_lines, good_lines, tell_lines

PATTERN = "[0-9]+,(?:a|NULL|)"
any_line = st.text(st.characters(max_codepoint=255, exclude_characters="\n"), max_size=8)
lines = st.lists(st.sampled_from(["1,a", "27,", "3,NULL", "", "4,a\r", "x,a", "\xe9"]) | any_line, min_size=1)


@given(lines, st.integers(1, 10**12), st.booleans())
def test_every_line_is_good_or_told_of(texts: list[str], first_line: int, ended: bool) -> None:
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


def test_lines_that_are_told_of() -> None:
    block = Block(7, b"a\nb\nc")
    assert tell_lines(block, [9, 7], str.upper) == [BadLine(9, "c", "C"), BadLine(7, "a", "A")]


@pytest.mark.parametrize("data", [b"1,a\n2,", b"1,a\n2,\n"])
def test_an_empty_last_line_is_a_line(data: bytes) -> None:
    _, numbers = good_lines(Block(1, data), PATTERN)
    assert numbers.tolist() == [1, 2]
    assert len(bad_lines(Block(1, data), numbers, str)) == data.count(b"\n") - 1
