"""A coverage-guided fuzzer of the readers of Ali-CCP and TaoBao lines, run by hand.

``pip install atheris``; ``python -m tests.datasets.fuzz_lines ali_ccp CORPUS -atheris_runs=1000000``, or ``taobao``.
Arguments after the folder are libFuzzer's options. Whatever the bytes are, nothing may crash or hang. Exactly the lines
that the plain parser calls bad may be bad, each with a reason, and every other line must read as it does there.

An input is a line or a few; its first byte chooses the file. Coverage is that of the plain parser and of the reasons.
The reader takes lines by the hundreds, as it is made for; where it differs, the lines are tried one by one.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

LINES_AT_ONCE = 500


@dataclass
class File:
    """A format's file: a good line, what the plain parser says of a line, and what compares the reader with it."""

    good: str
    is_bad: Callable[[str], bool]
    reason: Callable[[str], str]
    agree: Callable[..., None]
    pending: list[str] = field(default_factory=list)

    def check(self) -> None:
        lines, self.pending = self.pending, []
        try:
            self.agree(lines)
            self.agree(lines, ended=False)
        except BaseException:
            for line in lines:
                self.agree([line])
            raise


def ali_ccp() -> list[File]:
    from tests.datasets.ali_ccp import raw
    from tests.datasets.ali_ccp.agreement import agree
    from tests.datasets.ali_ccp.reference import parse
    from torchrec_mtl.datasets.ali_ccp.layout import COMMON, SKELETON, reason

    def file(good: str, skeleton: bool, columns: tuple[str, ...]) -> File:
        agrees = partial(agree, skeleton=skeleton)
        return File(good, lambda line: parse(line, skeleton) is None, partial(reason, columns), agrees)

    return [file(raw.GOOD_COMMON, False, COMMON), file(raw.GOOD_SKELETON, True, SKELETON)]


def taobao() -> list[File]:
    from tests.datasets.taobao.agreement import LAYOUTS, agree, values
    from tests.datasets.taobao.raw import LINES

    def file(name: str) -> File:
        layout = LAYOUTS[name]
        agrees = partial(agree, layout=layout)
        return File(LINES[name][0], lambda line: values(line, layout) is None, layout.reason, agrees)

    return [file(name) for name in sorted(LAYOUTS)]


FORMATS = {"ali_ccp": ali_ccp, "taobao": taobao}
TOKENS = {
    "ali_ccp": r"\x01 \x02 \x03 , \x0d \x0a 1.0 -0.5 1e5 +1 00 \xc3\xa9 150_14",
    "taobao": r", \x0d \x0a NULL pv buy _ E5 - + \x20 \x22 .0 \xff \x00",
}


def fuzz_one(files: Sequence[File], data: bytes) -> None:
    """Reads one input."""
    file = files[data[0] % len(files) if data else 0]
    lines = data[1:].decode("latin-1").split("\n")
    for line in lines:
        if file.is_bad(line):
            file.reason(line)
    file.pending += lines
    if len(file.pending) >= LINES_AT_ONCE:
        file.check()


def write_seeds(files: Sequence[File], tokens: str, corpus: Path) -> None:
    """Writes a good line of each file, and libFuzzer's dictionary."""
    corpus.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(files):
        (corpus / f"good_{number}").write_bytes(bytes([number]) + file.good.encode())
    corpus.with_suffix(".dict").write_text("".join(f'"{token}"\n' for token in tokens.split()))


def main() -> None:
    import atheris

    name, corpus = sys.argv[1], Path(sys.argv[2])
    parser = {"ali_ccp": "reference", "taobao": "agreement"}[name]
    with atheris.instrument_imports(include=[f"tests.data.{name}.{parser}", f"torchrec_mtl.data.{name}.layout"]):
        files = FORMATS[name]()
    write_seeds(files, TOKENS[name], corpus)
    options = [f"-dict={corpus.with_suffix('.dict')}", "-max_len=300", "-timeout=60", *sys.argv[3:]]
    atheris.Setup([sys.argv[0], str(corpus), *options], partial(fuzz_one, files))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
