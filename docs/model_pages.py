"""Writes a page for each model, and the tables of all: ``python docs/model_pages.py``.

A page is made of the model's docstrings, of its constructor, of a flow chart that is drawn from the model itself, of
what it costs in ``benchmarks/results/model_costs.csv``, and of what it gave in the committed comparison. Nothing on the
pages is written by hand. Ten seconds.
"""

import csv
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from docstring_parser import parse as parse_docstring
from torch import Tensor, fx, nn
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor

from torchrec_mtl import TaskChain, TaskForest
from torchrec_mtl.argument_types import type_name
from torchrec_mtl.errors import InputError
from torchrec_mtl.jobs.run_config import loss_name
from torchrec_mtl.modules import FeatureArch, TaskAwareExtraction
from torchrec_mtl.systems import SYSTEMS, System
from torchrec_mtl.tasks import Task

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"
BEGIN, END = "<!-- models, by docs/model_pages.py -->\n", "\n<!-- end of models -->"
RESULTS = DOCS.parent / "benchmarks" / "results"
COSTS, COMPARISON = RESULTS / "model_costs.csv", RESULTS / "complete_journey" / "comparison.csv"
FORESTS = {
    "one task": TaskForest(Task("click")),
    "independent tasks": TaskForest(Task("click"), Task("like")),
    "chains": TaskChain(["click", "cart", "purchase"]),
    "trees": TaskForest(Task("click"), Task("like", after="click"), Task("purchase", after="click")),
}
ROWS = 11  # of the batch that is drawn; no other size is 11
PASSED = {"getitem", "getattr", "flatten", "reshape", "unbind", "view", "squeeze", "unsqueeze", "expand", "split"}


def systems() -> dict[type[nn.Module], list[System]]:
    """The systems of each model, without ablations; the first is the model's."""
    found: dict[Any, list[System]] = {}
    for system in SYSTEMS.values():
        if system.ablation_of is None:
            found.setdefault(system.model, []).append(system)
    return found


def build(system: System, tasks: TaskForest) -> nn.Module:
    """A small model with four fields of eight."""
    fields = [f"field_{number}" for number in range(4)]
    tables = [
        EmbeddingBagConfig(name=f"t_{name}", embedding_dim=8, num_embeddings=9, feature_names=[name]) for name in fields
    ]
    model_args = {**system.small, **system.model_args}
    if "backend" in inspect.signature(system.model).parameters:
        model_args["backend"] = "modules"  # whose parts can be drawn
    torch.manual_seed(0)
    return system.model(FeatureArch(EmbeddingBagCollection(tables=tables)), tasks, **model_args).eval()


def taken_by(system: System) -> list[str]:
    """The kinds of forests that the model and its loss take."""
    taken = []
    for kind, tasks in FORESTS.items():
        try:
            build(system, tasks)
            system.loss(tasks, **system.loss_args)
            taken.append(kind)
        except InputError:
            continue
    return taken


class Parts(fx.Tracer):
    """Traces a model down to the parts that are worth a box."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        opened = (nn.Sequential, nn.ModuleList, TaskAwareExtraction)
        return name != "over_arch" and not isinstance(module, opened)


class Shapes(fx.Interpreter):
    """Runs a traced model and keeps the shape of what each node gives."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[str, str] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.shapes[n.name] = shape_of(value)
        return value


def shape_of(value: Any) -> str:
    """A shape, with ``B`` for the rows of the batch; of a list of tensors of one shape, how many there are."""
    if isinstance(value, Tensor):
        return f"[{', '.join('B' if size == ROWS else str(size) for size in value.shape)}]"
    shapes = [shape_of(each) for each in value] if isinstance(value, list | tuple) else []
    return f"{len(shapes)} x {shapes[0]}" if shapes and len(set(shapes)) == 1 else ""


def flow_chart(model: nn.Module) -> str:
    """A model as a flow chart in Mermaid's language, which GitHub draws."""
    graph = Parts().trace(model)
    traced = Shapes(fx.GraphModule(model, graph))
    names = [f"field_{number}" for number in range(4)]
    ids = KeyedJaggedTensor.from_lengths_sync(names, torch.ones(4 * ROWS).long(), torch.ones(4 * ROWS).int())
    traced.run(torch.empty(ROWS, 0), ids)
    boxes: dict[fx.Node, list[fx.Node]] = {}  # the boxes that a node stands for
    lines = ["flowchart LR"]
    for node in graph.nodes:
        before = list(dict.fromkeys(box for source in node.all_input_nodes for box in boxes[source]))
        name = getattr(node.target, "__name__", str(node.target))
        if node.op == "placeholder":
            boxes[node] = []
        elif node.op == "output":
            lines += [
                f'    logits(["logits {traced.shapes[node.name]}"])',
                *(f"    {box} --> logits" for box in before),
            ]
        elif node.op == "get_attr" or (node.op != "call_module" and name in PASSED):
            boxes[node] = before
        else:
            boxes[node] = [node]
            kind = type(model.get_submodule(name)).__name__ if node.op == "call_module" else ""
            label = [name.removeprefix("over_arch."), kind, traced.shapes[node.name]]
            text = "<br>".join(part for part in label if part)
            lines.append(f'    {node.name}["{text}"]' if kind else f'    {node.name}(["{text}"])')
            lines += [f"    {box} --> {node.name}" for box in before]
    return "\n".join(lines)


@dataclass(frozen=True)
class Cost:
    """What a system costs, with links to the rows of the figures."""

    parameters: str
    training: tuple[str, str]  # beside Shared-Bottom, beside DLRM
    inference: tuple[str, str]


def costs(path: Path = COSTS) -> dict[str, Cost]:
    """The costs by system; none of those that were not measured."""
    if not path.is_file():
        return {}
    found: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(csv.DictReader(path.open()), start=2):
        link = f"../../benchmarks/results/{path.name}#L{number}"
        figures = tuple(f"[{float(row[base]):.2f}]({link})" for base in ("to_shared_bottom", "to_dlrm"))
        found.setdefault(row["model"], {"parameters": f"{int(row['parameters']):,} k"})[row["direction"]] = figures
    return {name: Cost(**figures) for name, figures in found.items()}


def section(text: str, title: str) -> str:
    """A section of a Google docstring as it stands, without its heading and indentation."""
    match = re.search(rf"^{title}:+\n+((?:    .*\n|\n)+)", inspect.cleandoc(text) + "\n", re.M)
    return inspect.cleandoc(match[1]) if match else ""


def prose(text: str) -> str:
    """A docstring before its sections, in Markdown."""
    before = re.split(r"^(?:Args|Attributes|Raises|Returns|Example|Abstract):+$", inspect.cleandoc(text), flags=re.M)[0]
    return code(before.strip())


def code(text: str) -> str:
    return re.sub(r"::$", ":", text.replace("``", "`"), flags=re.M)


def arguments(constructor: Callable[..., Any]) -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and description of each argument."""
    described = {
        p.arg_name: " ".join((p.description or "").split()) for p in parse_docstring(constructor.__doc__ or "").params
    }
    hints = inspect.get_annotations(constructor.__init__, eval_str=True)
    for name, parameter in inspect.signature(constructor).parameters.items():
        given = parameter.default
        default = "" if given is parameter.empty else f"`{given.__name__ if inspect.isclass(given) else repr(given)}`"
        yield name, type_name(hints.get(name, Any)), default, described.get(name, "")


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cost_table(found: list[System], known: Mapping[str, Cost]) -> str:
    """What the systems of a model cost beside Shared-Bottom and DLRM."""
    head = ("", "parameters", "training / Shared-Bottom", "/ DLRM", "inference / Shared-Bottom", "/ DLRM")
    rows = [(s.title, c.parameters, *c.training, *c.inference) for s in found if (c := known.get(s.name))]
    return table(head, rows) if rows else "Not yet measured."


def about(model: type[nn.Module]) -> str:
    """What the module says first of its model, after the model's name."""
    first = prose(inspect.getdoc(inspect.getmodule(model)) or "").split("\n\n")[0].replace("\n", " ").rstrip(".")
    said = first.partition(": ")[2] or first
    return said[0].upper() + said[1:]


def page(model: type[nn.Module], found: list[System], known: Mapping[str, Cost]) -> str:
    """The page of a model."""
    first, module = found[0], inspect.getmodule(model)
    arch = getattr(module, f"{model.__name__}Arch", None)
    described = [inspect.getdoc(module), *([inspect.getdoc(arch)] if arch else []), inspect.getdoc(model)]
    _, *further = prose(described[0] or "").split("\n\n")
    example = section((arch or model).__doc__ or "", "Example")
    commands = ", ".join(f"`--models {system.name}`" for system in found)
    rows = [(f"`{name}`", kind, default, code(text)) for name, kind, default, text in arguments(model)]
    parts = [
        f"# {first.title}",
        f"{about(model)}.",
        f"```mermaid\n{flow_chart(build(first, FORESTS['chains']))}\n```",
        "A small model of four fields and a chain of three tasks, as it runs.",
        *further,
        *(prose(text or "") for text in described[1:]),
        f"It takes {', '.join(taken_by(first))}. Its loss is `{loss_name(first.loss)}`; in the jobs it is {commands}.",
        "## Arguments",
        table(("argument", "type", "default", ""), rows),
        f"Raises {code(section(model.__doc__ or '', 'Raises'))}",
        *(["## The over arch alone", f"```python\n{example}\n```"] if example else []),
        "## What it costs",
        cost_table(found, known),
        "Ratios of one thread's processor time, in a step and in a forward pass, at a batch of 4,096 with the sizes of "
        "the papers: [benchmarks/model_costs.py](../../benchmarks/model_costs.py).",
        "## What it gave",
        auc_table(found),
        "Test AUC over all impressions, five seeds, on "
        "[The Complete Journey](../../benchmarks/results/complete_journey/README.md).",
        f"[{Path(inspect.getfile(model)).name}](../../torchrec_mtl/models/{Path(inspect.getfile(model)).name})",
    ]
    return "\n\n".join(parts) + "\n"


def takes(system: System) -> str:
    """The kinds of forests that a model takes, in words."""
    kinds = taken_by(system)
    return "any tasks" if len(kinds) == len(FORESTS) else " and ".join(kinds[-2:])


def model_table(known: Mapping[str, Cost]) -> str:
    """The table of all models, with the costs of each system."""
    head = ("model", "", "takes", "loss", "parameters", "training / Shared-Bottom", "/ DLRM", "inference", "/ DLRM")
    rows: list[tuple[str, ...]] = []
    for model, found in systems().items():
        for system in found:
            c, loss = known.get(system.name), cast(Any, system.loss).__name__
            figures = (c.parameters, *c.training, *c.inference) if c else ("",) * 5
            rows.append((f"[{system.title}]({file_name(model)})", about(model), takes(system), f"`{loss}`", *figures))
    return table(head, rows)


def short_table() -> str:
    """The README's table: name, idea and tasks of each model."""
    rows = []
    for model, found in systems().items():
        links = ", ".join(f"[{system.title}](docs/models/{file_name(model)})" for system in found)
        rows.append((links, re.split(r" \(", about(model))[0], takes(found[0])))
    return table(("model", "", "takes"), rows)


def index(known: Mapping[str, Cost]) -> str:
    """The page of all models."""
    return "\n\n".join(["# The models", INTRODUCTION, model_table(known)]) + "\n"


def readme() -> str:
    """The README with its table of models."""
    before, _, rest = README.read_text("utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{short_table()}\n{END}{after}"


INTRODUCTION = """Every model is one class, `Model(features, tasks, **arguments)`, and one file. The pages are made of
their docstrings by `python docs/model_pages.py`. Costs are ratios of one thread's processor time at a batch of 4,096,
with the sizes of the papers ([benchmarks/model_costs.py](../../benchmarks/model_costs.py)); parameters are those
outside the tables. DLRM is TorchRec's. TAFE is measured with a selector that lets every point through, as it does
when training begins."""


def auc_table(found: list[System]) -> str:
    """The test AUC of a model's systems and ablations over all impressions, and the highest of all systems."""
    rows = list(enumerate(csv.DictReader(COMPARISON.open()), start=2))
    rows = [(number, row) for number, row in rows if row["space"] == "impressions"]
    tasks = list(dict.fromkeys(row["task"] for _, row in rows))
    best = {
        task: max((row for _, row in rows if row["task"] == task), key=lambda r: float(r["mean"])) for task in tasks
    }
    bases = {system.name for system in found}
    names = [s.name for s in SYSTEMS.values() if s.base in bases and any(row["model"] == s.name for _, row in rows)]
    if not names:
        return "Not yet compared in its present form."

    def figure(number: int, row: Mapping[str, str]) -> str:
        link = f"../../benchmarks/results/complete_journey/{COMPARISON.name}#L{number}"
        return f"[{float(row['mean']):.4f}]({link}) ± {float(row['std']):.4f}"

    cells = [(SYSTEMS[name].title, *(figure(n, row) for n, row in rows if row["model"] == name)) for name in names]
    highest = ("the highest of all", *(f"{float(best[t]['mean']):.4f}, {best[t]['title']}" for t in tasks))
    return table(("", *tasks), [*cells, highest])


def file_name(model: type[nn.Module]) -> str:
    """The file of a model's page."""
    return f"{Path(inspect.getfile(model)).stem}.md"


def pages() -> dict[str, str]:
    """All pages by file name."""
    known = costs()
    return {"README.md": index(known), **{file_name(m): page(m, found, known) for m, found in systems().items()}}


def main() -> None:
    for name, text in pages().items():
        (DOCS / "models" / name).write_text(text, "utf-8")
        print(DOCS / "models" / name)
    README.write_text(readme(), "utf-8")


if __name__ == "__main__":
    main()
