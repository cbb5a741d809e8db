"""Polars's parsing of lines, compared with a short parser in plain Python."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.datasets.ali_ccp import raw
from tests.datasets.ali_ccp.agreement import agree
from tests.datasets.ali_ccp.reference import parse
from torchrec_mtl.data.raw.lines import NOT_ENDED, Block
from torchrec_mtl.datasets.ali_ccp.layout import COMMON, FIELDS, SKELETON, reason
from torchrec_mtl.datasets.ali_ccp.lines import parse_lines, pick_features, split_features

numbers = st.integers(1, 10**18 - 1)
values = st.one_of(st.just("1.0"), st.decimals(0, 100, places=5).map(str), st.integers(0, 99).map(str))
triples = st.lists(st.tuples(st.sampled_from(FIELDS), numbers, values), min_size=1, max_size=12)
keys = st.integers(0, 2**64 - 1).map(lambda key: f"{key:016x}")
good_skeleton = st.builds(
    lambda features, **others: raw.skeleton(*features, **others),
    triples,
    sample=numbers,
    labels=st.sampled_from(["0,0", "1,0", "1,1", "0,1"]),
    key=keys,
)
good_common = st.builds(lambda features, key: raw.common(*features, key=key), triples, key=keys)
PIECES = ["\x01", "\x02", "\x03", ",", "\r", "0", "-", ".", "1e5", " ", "+1", "\xe9", "\x00", '"', "_", "205", ""]


@st.composite
def damage(draw: st.DrawFn, lines: st.SearchStrategy[str]) -> str:
    """Draws a good line with up to two stretches replaced."""
    line = draw(lines)
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(line)))
        end = start + draw(st.integers(0, 3))
        line = line[:start] + draw(st.sampled_from(PIECES)) + line[end:]
    return line


@settings(max_examples=80)
@given(st.lists(damage(good_skeleton), min_size=1, max_size=6), st.booleans())
def test_skeleton_lines_agree_with_the_plain_parser(lines: list[str], ended: bool) -> None:
    agree(lines, skeleton=True, ended=ended)


@settings(max_examples=80)
@given(st.lists(damage(good_common), min_size=1, max_size=6), st.booleans())
def test_common_lines_agree_with_the_plain_parser(lines: list[str], ended: bool) -> None:
    agree(lines, skeleton=False, ended=ended)


@given(st.lists(st.text(st.characters(max_codepoint=255, exclude_characters="\n"), max_size=40), min_size=1))
def test_lines_of_any_bytes(lines: list[str]) -> None:
    agree(lines, skeleton=True)
    agree(lines, skeleton=False)


@given(st.lists(good_common, min_size=1, max_size=6), st.sets(st.sampled_from(FIELDS), min_size=1))
def test_picking_keeps_the_features_of_the_fields(lines: list[str], fields: set[str]) -> None:
    table = parse_lines(Block(1, "\n".join(lines).encode()), COMMON).table
    ordered = sorted(fields)
    found = split_features(table, ordered), split_features(pick_features(table, ordered), ordered)
    expected = [
        (row, ordered.index(field), number)
        for row, line in enumerate(lines)
        for field, number, _ in parse(line, False).features
        if field in fields
    ]
    for triples in found:
        columns = (triples.rows.tolist(), triples.fields.tolist(), triples.ids.tolist())
        assert list(zip(*columns, strict=True)) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "must have 6 columns, not 1"),
        (raw.GOOD_SKELETON + "\r", "must end in a line feed alone, not in a carriage return too"),
        (raw.GOOD_SKELETON + ",1", "must have 6 columns, not 7"),
        ("sample_id,click,purchase,common_feature_index,feature_num,feature_list", "the file must have no header"),
        (raw.GOOD_SKELETON.replace("1,0,", "01,0,", 1), "`sample_id` (='01') must be an integer of at least 1"),
        (raw.GOOD_SKELETON.replace("1,0,0,", "1,yes,0,"), "`click` (='yes') must be 0 or 1"),
        (raw.GOOD_SKELETON.replace("1,0,0,", "1,0,2,"), "`purchase` (='2') must be 0 or 1"),
        (raw.GOOD_SKELETON.replace("84dc", "84DC"), "(='84DCeed2e3a667f8') must be 16 hexadecimal digits"),
        (raw.GOOD_SKELETON.replace("f8,3,", "f8,4,"), "`feature_num` (=4) must be the number of features (3)"),
        (raw.GOOD_SKELETON.replace("205\x02", "333\x02"), "field '333' of a feature must be one of ['101', "),
        (raw.GOOD_SKELETON.replace("205\x02", "205\x03"), "must be a field, \\x02, an id, \\x03 and a value"),
        (raw.GOOD_SKELETON + "\x01", "feature '' must be a field, \\x02, an id, \\x03 and a value"),
        (raw.GOOD_SKELETON.replace("4945663", "4_9"), "id '4_9' of field '205' must be an integer of at least 1"),
        (raw.GOOD_SKELETON.replace("4945663", "0"), "id '0' of field '205' must be an integer of at least 1"),
        (raw.GOOD_SKELETON.replace("2.63906", "nan"), "value 'nan' of field '508' must be a decimal number"),
    ],
)
def test_reason(line: str, message: str) -> None:
    (bad,) = parse_lines(Block(3, line.encode()), SKELETON).bad
    assert (bad.number, bad.text) == (3, line)
    assert message in bad.reason


def test_a_line_without_its_end() -> None:
    lines = parse_lines(Block(1, f"{raw.GOOD_COMMON}\n{raw.GOOD_COMMON}".encode(), ended=False), COMMON)
    assert lines.table["line"].to_list() == [1]
    assert [(bad.number, bad.reason) for bad in lines.bad] == [(2, NOT_ENDED)]


def test_a_long_value_is_shortened_in_the_reason() -> None:
    message = reason(COMMON, raw.GOOD_COMMON.replace("31319", "9" * 500))
    assert re.fullmatch(r"id '9{60}\.\.\.' of field '101' must be an integer of at least 1 and below 10\^18", message)
