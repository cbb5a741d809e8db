"""Lays out what Sphinx reads, in build/docs-source: docs/*.md as they stand, the README as the front page, the
reference, and a page for each file outside docs/ that a page links to, so that the site is whole without a network.
"""

import csv
import html
import os
import posixpath
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE, AS_IT_IS = ROOT / "build" / "docs-source", ROOT / "build" / "docs-files"
NAMED = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(!?\[((?:[^\[\]]|\[[^\]]*\])*)\]\()(?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)")
FENCE = re.compile(r"^(```.*?^```|~{3,}.*?^~{3,})[ ]*$", re.M | re.S)
LANGUAGES = {".py": "python", ".cpp": "cpp"}

PACKAGES = ["models", "losses", "modules", "metrics", "data", "data.table", "inference", "inference.package"]
PACKAGES += ["training", "training.balancing", "ops", "datasets"]
REFERENCE = ["torchrec_mtl", *PACKAGES, "tasks", "kinds", "systems", "errors"]
CONTENTS = {
    "Tutorials": ["your_own_table", "from_dlrm", "A funnel in production <every_day>", "a_service", "own_parts"],
    "How-tos": ["installation", "compatibility", "first_run", "in_your_stack", "a_trained_run"],
    "Running": ["cluster", "checkpoints", "sharding", "gpu", "roofline", "At 3 a.m. <at_3_am>"],
    "Data": ["data", "delayed_conversions", "zero_collision", "spark"],
    "Training": ["losses", "balancing", "values", "histories"],
    "Explanation": ["papers", "attention", "metrics"],
    "Models": ["models/README"],
    "Reference": [f"reference/{name}" for name in REFERENCE],
    "Benchmarks": [
        "compare",
        "On the Complete Journey <source/benchmarks/results/complete_journey/README>",
        "On all of its rows <source/benchmarks/results/complete_journey_whole/README>",
        "speed",
        "peers",
        "scoring",
    ],
    "More machines": ["embedding_throughput", "scaling"],
    "Changing it": ["contributing", "changelog"],
}


def of_site(path: str) -> str:
    """The file of the site for a path in the repository."""
    if path in NAMED:
        return NAMED[path]
    if path.startswith("docs/") and path.endswith((".md", ".png")):
        return path.removeprefix("docs/")
    return f"source/{path}" if path.endswith((".md", ".png", ".html", ".ipynb")) else f"source/{path}.md"


def targets(text: str, path: str) -> Iterator[tuple[str, str]]:
    """What a text at ``path`` links to: paths in the repository and what follows ``#``."""
    for match in LINK.finditer(FENCE.sub("", text)):
        yield posixpath.normpath(posixpath.join(posixpath.dirname(path), match[3])), match[4] or ""


def rewritten(text: str, path: str) -> str:
    """A page of the repository with its links as they are on the site."""
    folder = posixpath.dirname(of_site(path)) or "."

    def link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), match[3]))
        found, anchor = posixpath.relpath(of_site(target), folder), match[4] or ""
        if not found.endswith((".md", ".png")) or target.endswith(".csv"):  # Sphinx does not know rows of a table
            return f'<a href="{re.sub(r"[.]md$", ".html", found)}{anchor}">{match[2]}</a>'
        return f"{match[1]}{found}{anchor if target.endswith('.md') else ''})"

    def laid_out(prose: str) -> str:
        return LINK.sub(link, prose).replace(" ± ", "\u00a0±\u00a0")  # a figure stays on one line

    parts = FENCE.split(text)  # what is fenced has odd places
    return "".join(part if place % 2 else laid_out(part) for place, part in enumerate(parts))


def shown(path: str) -> str:
    """The page of a file or folder that is no page itself; the rows of a CSV have the numbers that links name."""
    file, head = ROOT / path, f"---\norphan: true\n---\n\n# {path}\n\n"
    if file.is_dir():
        return head + "\n".join(f"- {name}" for name in sorted(os.listdir(file)) if name[:2] != "__") + "\n"
    if file.suffix != ".csv":
        return f"{head}~~~~~~{LANGUAGES.get(file.suffix, 'text')}\n{file.read_text(encoding='utf-8')}\n~~~~~~\n"
    with file.open(newline="", encoding="utf-8") as lines:
        rows = [[str(number) if number > 1 else "", *row] for number, row in enumerate(csv.reader(lines), 1)]
    cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    table = "\n".join(f'<tr id="L{number}">{of_row}</tr>' for number, of_row in enumerate(cells, 1))
    return f'{head}<div class="table-wrapper"><table class="csv">\n{table}\n</table></div>\n'


def contents() -> str:
    """The site's table of contents, below the front page; pages that have no place in it come last."""
    placed = {page.rpartition("<")[2].rstrip(">") for pages in CONTENTS.values() for page in pages}
    others = [page.stem for page in sorted((ROOT / "docs").glob("*.md")) if page.stem not in placed]
    parts = ((title, [*pages, *(others if title == "How-tos" else [])]) for title, pages in CONTENTS.items())
    return "\n" + "".join(toctree(pages, f":caption: {title}\n") for title, pages in parts)


def toctree(pages: Iterable[str], option: str = "") -> str:
    return f"```{{toctree}}\n:hidden:\n{option}\n{chr(10).join(pages)}\n```\n\n"


def lay_out() -> None:
    """Writes build/docs-source, and what is not a page to build/docs-files.

    Raises:
        FileNotFoundError: if a page links to a file that is not there, or to a row that a CSV does not have.
    """
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.rmtree(AS_IT_IS, ignore_errors=True)
    waiting = [*NAMED, *(str(page.relative_to(ROOT)) for page in sorted((ROOT / "docs").rglob("*.md")))]
    done = set(waiting)

    def write(name: str, text: str) -> None:
        place = SOURCE / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")

    while waiting:
        path = waiting.pop()
        text = (ROOT / path).read_text(encoding="utf-8")
        if path == "README.md":
            text += contents()
        elif path == "docs/models/README.md":
            text += "\n" + toctree(dict.fromkeys(re.findall(r"\]\((\w+)\.md\)", text)))
        write(of_site(path), rewritten(text, path))
        for target, anchor in targets(text, path):
            if not (ROOT / target).exists():
                raise FileNotFoundError(f"{path} links to {target}, which is not there")
            if target.endswith(".csv") and anchor and int(anchor[2:]) > len((ROOT / target).read_text().splitlines()):
                raise FileNotFoundError(f"{path} links to {target}{anchor}, a row that is not there")
            if target in done:
                continue
            done.add(target)
            if target.endswith(".md"):
                waiting.append(target)
            elif target.endswith((".png", ".html", ".ipynb")):
                place = (SOURCE if target.endswith(".png") else AS_IT_IS) / of_site(target)
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / target, place)
            else:
                write(of_site(target), shown(target))
    for name in REFERENCE:
        module = name if name == "torchrec_mtl" else f"torchrec_mtl.{name}"
        options = ["members", *(["imported-members"] if (ROOT / module.replace(".", "/")).is_dir() else [])]
        options += ["no-index"] * (name == "torchrec_mtl")  # the others have its names
        lines = [module, "=" * len(module), "", f".. automodule:: {module}", *(f"   :{each}:" for each in options)]
        write(f"reference/{name}.rst", "\n".join(lines) + "\n")


if __name__ == "__main__":
    lay_out()
