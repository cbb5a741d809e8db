"""Programs in pages that explain print what the pages say."""

import contextlib
import io

import pytest

from tests.docs.pages import BLOCK, ROOT


@pytest.mark.parametrize("page", ["attention.md", "metrics.md"])
def test_the_page(page):
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    blocks = [block for block in BLOCK.findall(text) if block[0] in ("python", "text")]
    assert [kind for kind, _ in blocks] == ["python", "text"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(blocks[0][1], {})
    assert out.getvalue() == blocks[1][1]
