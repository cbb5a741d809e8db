"""A coverage-guided fuzzer of the reader of TaoBao lines, run by hand.

``pip install atheris``, then ``python -m benchmarks.fuzz_taobao CORPUS -atheris_runs=1000000``; what follows the folder
are libFuzzer's options. Whatever the bytes are, nothing may crash or hang, exactly the lines may be bad that the plain
parser calls bad, each with a reason, and every other line must read as there.

An input is a line or a few; its first byte says of which file. Coverage is that of the plain parser and of the reasons.
The reader itself takes lines by the hundreds, as it is made for; where it differs, the lines are tried one by one.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["tests.data.taobao.agreement", "torchrec_mtl.data.taobao.layout"]):
    from tests.data.taobao.agreement import LAYOUTS, agree, values

from tests.data.taobao.raw import LINES

LINES_AT_ONCE = 500
TOKENS = (b",", b"\r", b"\n", b"NULL", b"pv", b"buy", b"_", b"E5", b"-", b"+", b" ", b'"', b".0", b"\xff", b"\x00")
NAMES = sorted(LAYOUTS)
pending: dict[str, list[str]] = {name: [] for name in NAMES}


def fuzz_one(data: bytes) -> None:
    """One input."""
    name = NAMES[data[0] % len(NAMES)] if data else NAMES[0]
    lines = data[1:].decode("latin-1").split("\n")
    for line in lines:
        if values(line, LAYOUTS[name]) is None:
            LAYOUTS[name].reason(line)
    pending[name] += lines
    if len(pending[name]) >= LINES_AT_ONCE:
        check(name)


def check(name: str) -> None:
    lines, pending[name] = pending[name], []
    try:
        agree(lines, LAYOUTS[name])
        agree(lines, LAYOUTS[name], ended=False)
    except BaseException:
        for line in lines:
            agree([line], LAYOUTS[name])
        raise


def main() -> None:
    corpus = Path(sys.argv[1])
    corpus.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(NAMES):
        (corpus / name).write_bytes(bytes([number]) + LINES[name][0].encode())
    tokens = ["".join(f"\\x{byte:02x}" for byte in token) for token in TOKENS]
    corpus.with_suffix(".dict").write_text("".join(f'"{token}"\n' for token in tokens))
    options = [f"-dict={corpus.with_suffix('.dict')}", "-max_len=200", "-timeout=60", *sys.argv[2:]]
    atheris.Setup([sys.argv[0], str(corpus), *options], fuzz_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
