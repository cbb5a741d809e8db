"""Each claim of the page has the test that it names."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "compatibility.md"


def test_every_test_that_is_named_is_there():
    links = re.findall(r"\]\((\.\./tests/[\w/.]+\.py)#(\w+)\)", PAGE.read_text(encoding="utf-8"))
    assert len(links) > 15
    missing = [link for link in links if f"\ndef {link[1]}(" not in (PAGE.parent / link[0]).read_text(encoding="utf-8")]
    assert missing == []


def test_the_versions_of_formats_are_those_of_the_code():
    from torchrec_mtl.data import reader, schema
    from torchrec_mtl.data.table import encoders
    from torchrec_mtl.inference.package import manifest as package
    from torchrec_mtl.training.checkpoint import manifest as checkpoint

    rows = re.findall(r"^\| [^|]+ \| (\d+) \| [^|]+ \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    inside = (schema.FORMAT_VERSION, reader.LAYOUT_VERSION, encoders.FORMAT_VERSION, checkpoint.VERSION)
    assert list(map(int, rows)) == [*inside, package.FORMAT_VERSION]
