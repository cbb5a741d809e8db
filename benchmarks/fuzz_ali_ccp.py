"""A coverage-guided fuzzer of the reader of Ali-CCP lines, run by hand.

``pip install atheris``, then ``python -m benchmarks.fuzz_ali_ccp CORPUS -atheris_runs=2000000``; what follows the
folder are libFuzzer's options. Whatever the bytes are, nothing may crash or hang, exactly the lines may be bad that the
plain parser calls bad, each with a reason, and every other line must read as there.

An input is a line or a few; its first byte says of which file. Coverage is that of the plain parser and of the reasons.
The reader itself takes lines by the hundreds, as it is made for; where it differs, the lines are tried one by one.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["tests.data.ali_ccp.reference", "torchrec_mtl.data.ali_ccp.layout"]):
    from tests.data.ali_ccp.reference import parse
    from torchrec_mtl.data.ali_ccp.layout import COMMON, SKELETON, reason

from tests.data.ali_ccp import raw
from tests.data.ali_ccp.agreement import agree

LINES_AT_ONCE = 500
TOKENS = (b"\x01", b"\x02", b"\x03", b",", b"\r", b"\n", b"1.0", b"-0.5", b"1e5", b"+1", b"00", b"\xc3\xa9", b"150_14")
pending: dict[bool, list[str]] = {False: [], True: []}


def fuzz_one(data: bytes) -> None:
    """One input."""
    skeleton = bool(data[:1] and data[0] & 1)
    lines = data[1:].decode("latin-1").split("\n")
    for line in lines:
        if parse(line, skeleton) is None:
            reason(SKELETON if skeleton else COMMON, line)
    pending[skeleton] += lines
    if len(pending[skeleton]) >= LINES_AT_ONCE:
        check(skeleton)


def check(skeleton: bool) -> None:
    lines, pending[skeleton] = pending[skeleton], []
    try:
        agree(lines, skeleton)
        agree(lines, skeleton, ended=False)
    except BaseException:
        for line in lines:
            agree([line], skeleton)
        raise


def write_seeds(corpus: Path) -> None:
    """Good lines of both files, and the tokens that they are made of as libFuzzer's dictionary."""
    corpus.mkdir(parents=True, exist_ok=True)
    (corpus / "skeleton").write_bytes(b"\x01" + raw.GOOD_SKELETON.encode())
    (corpus / "common").write_bytes(b"\x00" + raw.GOOD_COMMON.encode())
    lines = ["".join(f"\\x{byte:02x}" for byte in token) for token in TOKENS]
    corpus.with_suffix(".dict").write_text("".join(f'"{line}"\n' for line in lines))


def main() -> None:
    corpus = Path(sys.argv[1])
    write_seeds(corpus)
    options = [f"-dict={corpus.with_suffix('.dict')}", "-max_len=300", "-timeout=60", *sys.argv[2:]]
    atheris.Setup([sys.argv[0], str(corpus), *options], fuzz_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
