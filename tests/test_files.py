"""JSON that every reader can read."""

import ast
import json
import math
from pathlib import Path

import pytest

import torchrec_mtl
from torchrec_mtl.errors import InputError
from torchrec_mtl.files import read_json, to_json

SOURCES = sorted(Path(torchrec_mtl.__file__).parent.rglob("*.py"))
IN_MEMORY = {
    "files.py",
    "settings.py",
    "parameters.py",
    "fingerprint.py",
    "text.py",
}  # these write no file with `json.dumps`


def test_what_is_not_a_number_is_null_wherever_it_is():
    value = {"a": [math.nan, (1.5, -math.inf)], "b": {"c": math.inf, "d": "NaN"}}
    assert json.loads(to_json(value)) == {"a": [None, [1.5, None]], "b": {"c": None, "d": "NaN"}}


@pytest.mark.parametrize("source", [file for file in SOURCES if file.name not in IN_MEMORY], ids=lambda file: file.name)
def test_files_are_written_without_nan(source):
    calls = [node for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.Call)]
    assert not [node.lineno for node in calls if ast.unparse(node.func) in ("json.dumps", "json.dump")]


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": 1', b"[]", b"null", b"3", b'"x"', b"\xff\xfe{}"])
def test_what_is_no_json_object_is_one_sentence(tmp_path, content):
    file = tmp_path / "x.json"
    file.write_bytes(content)
    with pytest.raises(InputError) as raised:
        read_json(file)
    assert str(raised.value).startswith(str(file))
    assert "\n" not in str(raised.value)
