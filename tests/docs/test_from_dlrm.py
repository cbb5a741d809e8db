"""docs/from_dlrm.md: its program runs on two processes as it stands, loads the tables, prints what the page says."""

import re
from pathlib import Path

import pytest

from tests import processes

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "from_dlrm.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
IS_LOADED = """
def local(states, prefix):
    return {
        name.removeprefix(prefix): [shard.tensor.clone() for shard in value.local_shards()]
        for name, value in states.items() if name.startswith(prefix)
    }

def sums_of(optimizer):
    return {f"{key}.{name}": v for key, of in optimizer.state_dict()["state"].items() for name, v in of.items()}

for old, new in ((dlrm.state_dict(), tafe.state_dict()), (sums_of(optimizer), sums_of(new_optimizer))):
    old, new = local(old, OLD), local(new, NEW)
    assert old.keys() == new.keys()
    assert all(torch.equal(a, b) and a.any() for name in old for a, b in zip(old[name], new[name], strict=True))
    print(f"loaded {rank} {sum(map(len, old.values()))};", flush=True)
"""


@pytest.mark.slow
def test_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "examples"), prepend=":")
    program = tmp_path / "from_dlrm.py"
    program.write_text("\n\n".join(block + IS_LOADED * ("dcp.load(" in block) for block in BLOCKS))
    printed = processes.run_program(program, ranks=2)
    loaded = re.findall(r"loaded (\d) (\d);", printed)  # two ranks may share a line
    assert {rank for rank, _ in loaded} == {"0", "1"}
    assert sum(int(shards) for _, shards in loaded) == 2 * 4  # four tables, each with its sums, each on one rank

    (said,) = re.findall(r"^```text\n(.*?)^```$", PAGE, re.M | re.S)
    found = printed[printed.index("AUC  ") :]
    number = re.compile(r"0\.\d+")
    assert [line.split() for line in number.sub("0", found).splitlines()] == [
        line.split() for line in number.sub("0", said).splitlines()
    ]
    for one, other in zip(number.findall(said), number.findall(found), strict=True):
        assert float(one) == pytest.approx(float(other), abs=0.03)
    old, loaded_auc, new = (float(number.findall(line)[0]) for line in found.splitlines()[1:4])
    assert old > loaded_auc > new  # after so few steps
