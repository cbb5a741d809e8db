"""Small raw files, written by hand."""

from pathlib import Path

COMMON_KEY = "84dceed2e3a667f8"


def features(*triples: tuple[str, int, str]) -> str:
    return "\x01".join(f"{field}\x02{number}\x03{value}" for field, number, value in triples)


def skeleton(*triples: tuple[str, int, str], sample: int = 1, labels: str = "0,0", key: str = COMMON_KEY) -> str:
    return f"{sample},{labels},{key},{len(triples)},{features(*triples)}"


def common(*triples: tuple[str, int, str], key: str = COMMON_KEY) -> str:
    return f"{key},{len(triples)},{features(*triples)}"


GOOD_COMMON = common(("101", 31319, "1.0"), ("150_14", 3916684, "2.3979"), ("150_14", 3940798, "1.07056"))
GOOD_SKELETON = skeleton(("205", 4945663, "1.0"), ("210", 9052218, "1.0"), ("508", 9355323, "2.63906"))


def write(folder: Path, **contents: list[str] | bytes) -> Path:
    """Writes the four files: ``contents`` by the name of the file, or good lines; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        rows = [GOOD_SKELETON.replace("1,", f"{i},", 1) for i in range(1, 41)]
        for name, lines in ((f"common_features_{split}", [GOOD_COMMON]), (f"sample_skeleton_{split}", rows)):
            content = contents.get(name, lines)
            if isinstance(content, list):
                content = "".join(line + "\n" for line in content).encode("latin-1")
            (folder / f"{name}.csv").write_bytes(content)
    return folder
