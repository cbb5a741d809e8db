"""Lines of any bytes: each is a row with the values of the line, or a bad line."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.datasets.taobao.agreement import LAYOUTS, agree
from tests.datasets.taobao.raw import LINES
from torchrec_mtl.data.raw.lines import Block
from torchrec_mtl.datasets.taobao.lines import parse_block

ALPHABET = "0123456789,._-+ \r\t\"'eENULnanpvbuycartfav\x00\xff"


@st.composite
def blocks(draw: st.DrawFn) -> tuple[str, list[str]]:
    """Draws lines of a file, some of them changed in one or two positions, or any text."""
    name = draw(st.sampled_from(sorted(LAYOUTS)))
    lines = []
    for _ in range(draw(st.integers(1, 5))):
        line = draw(st.sampled_from(LINES[name]))
        for _ in range(draw(st.integers(0, 2))):
            place = draw(st.integers(0, len(line)))
            line = line[:place] + draw(st.text(ALPHABET, max_size=2)) + line[place + draw(st.integers(0, 2)) :]
        lines.append(draw(st.sampled_from([line, line, draw(st.text(ALPHABET, max_size=12))])))
    return name, lines


@settings(max_examples=300)
@given(blocks(), st.integers(2, 10**9), st.booleans())
@example(("ad_feature", ["1,2,3,4,,1.0", "1,2,3,4,NULL,1E5", "999999999999999999,2,3,4,5,999999999999999.5"]), 2, True)
@example(("raw_sample", [""]), 2, True)
@example(("raw_sample", [""]), 2, False)
def test_a_line_is_a_row_or_a_bad_line(block: tuple[str, list[str]], first_line: int, ended: bool) -> None:
    name, lines = block
    agree(lines, LAYOUTS[name], first_line, ended)


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_all_good_lines_are_read(name: str) -> None:
    rows, bad = parse_block(Block(2, "\n".join(LINES[name]).encode(), True), LAYOUTS[name])
    assert (rows.height, bad) == (len(LINES[name]), [])
