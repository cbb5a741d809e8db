"""Compares Polars's parsing of lines with the plain parser, for tests and the fuzzer."""

from tests.datasets.ali_ccp.reference import parse, same
from torchrec_mtl.data.raw.lines import Block
from torchrec_mtl.datasets.ali_ccp.layout import COMMON, FIELDS, SKELETON
from torchrec_mtl.datasets.ali_ccp.lines import parse_lines, split_features


def agree(lines: list[str], skeleton: bool, ended: bool = True) -> None:
    """Checks that ``parse_lines`` and ``split_features`` find in ``lines`` what the plain parser finds."""
    columns = SKELETON if skeleton else COMMON
    found = parse_lines(Block(7, "\n".join(lines).encode("latin-1"), ended), columns)
    expected = {number: parse(line, skeleton) for number, line in enumerate(lines, 7)}
    if not ended:
        expected[6 + len(lines)] = None
    assert [(bad.number, bad.text) for bad in found.bad] == [
        (number, lines[number - 7]) for number, line in expected.items() if line is None
    ]
    assert all(bad.reason for bad in found.bad)
    good = {number: line for number, line in expected.items() if line is not None}
    assert found.table["line"].to_list() == list(good)
    assert found.table["key"].to_list() == [line.key for line in good.values()]
    if skeleton:
        assert found.table["click"].to_list() == [line.click for line in good.values()]
        assert found.table["purchase"].to_list() == [line.purchase for line in good.values()]
    triples = split_features(found.table, FIELDS, with_values=True)
    expected_features = [(row, *feature) for row, line in enumerate(good.values()) for feature in line.features]
    assert triples.rows.tolist() == [row for row, *_ in expected_features]
    assert [FIELDS[code] for code in triples.fields] == [field for _, field, *_ in expected_features]
    assert triples.ids.tolist() == [number for _, _, number, _ in expected_features]
    assert all(
        same(a, b) for a, b in zip(triples.values.tolist(), [value for *_, value in expected_features], strict=True)
    )
