"""The pages of the models say what the models are."""

import pytest

from docs.model_pages import DOCS, FORESTS, README, build, flow_chart, pages, readme, systems, taken_by
from torchrec_mtl import models
from torchrec_mtl.systems import SYSTEMS


def test_the_pages_are_those_that_the_program_writes():
    written = {path.name: path.read_text("utf-8") for path in (DOCS / "models").glob("*.md")}
    assert written == pages()


def test_the_table_in_the_readme_is_theirs():
    assert README.read_text("utf-8") == readme()


def test_every_model_has_a_page():
    classes = {name for name in models.__all__ if not name.endswith("Arch")} - {"MultiTaskModel"}
    assert {model.__name__ for model in systems()} == classes


def test_a_flow_chart_shows_what_reads_what():
    chart = flow_chart(build(SYSTEMS["esmm"], FORESTS["chains"]))
    edges = [line.strip() for line in chart.splitlines() if "-->" in line]
    assert edges == [
        "features --> over_arch_towers",
        "over_arch_towers --> over_arch_marginal",
        "over_arch_marginal --> logits",
    ]
    assert "MarginalFromConditional<br>[B, 3]" in chart


@pytest.mark.parametrize(("name", "taken"), [("esmm", 3), ("ple", 4), ("bpcm", 3)])
def test_what_a_model_takes(name, taken):
    assert len(taken_by(SYSTEMS[name])) == taken
