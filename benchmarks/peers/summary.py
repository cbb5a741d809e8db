"""What the program says on the screen."""

from benchmarks.peers.common import DEFAULT, LIKE_FOR_LIKE, SETTINGS
from benchmarks.peers.work import MODELS, OURS
from benchmarks.record import Row

GOALS = {LIKE_FOR_LIKE: 1.2, DEFAULT: 3.0}  # times the fastest peer's training speed
AUC_MARGIN = 0.003
FIGURES = (
    ("training", "median", 2),
    ("training", "ours_to_this", 2),
    ("inference", "median", 1),
    ("peak memory", "median", 0),
)


def summary(rows: list[Row]) -> str:
    """A table, what failed, and how far the goals are reached."""
    lines = [f"{'setting':16}{'model':15}{'library':15}{'train':>8}{'ours/':>8}{'infer':>8}{'peak':>8}  AUC by task"]
    lines[0] += "\n" + " " * 46 + f"{'k/CPU s':>8}{'this':>8}{'k/CPU s':>8}{'MiB':>8}  (impressions)"
    told = [row for row in rows if "error" not in row and row.get("space", "impressions") == "impressions"]
    groups: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in told:
        key = (row["setting"], row["model"], row["library"])
        groups.setdefault(key, {})[row["measure"] + row.get("task", "")] = row
    for key, of in sorted(groups.items(), key=lambda item: (SETTINGS.index(item[0][0]), MODELS.index(item[0][1]))):
        setting, model, library = key
        figures = [f"{of[name][column]:8.{digits}f}" if name in of else " " * 8 for name, column, digits in FIGURES]
        aucs = "  ".join(f"{row['median']:.4f}" for name, row in of.items() if name.startswith("test AUC"))
        lines.append(f"{setting:16}{model:15}{library:15}{''.join(figures)}  {aucs}")
    lines += [f"failed: {row['library']} {row.get('model', '')}: {row['error']}" for row in rows if "error" in row]
    return "\n".join([*lines, *goals(told)])


def goals(rows: list[Row]) -> list[str]:
    """A sentence for each setting and model that a peer has too."""
    sentences = []
    for setting, model in dict.fromkeys((row["setting"], row["model"]) for row in rows):
        own = [row for row in rows if (row["setting"], row["model"]) == (setting, model)]
        peers = [row for row in own if row["library"] != OURS]
        speeds = [row["ours_to_this"] for row in peers if row["measure"] == "training"]
        if speeds:
            told = f"{min(speeds):.2f} times the fastest peer's training speed"
            if setting in GOALS:
                told += f", goal {GOALS[setting]}: {'reached' if min(speeds) >= GOALS[setting] else 'missed'}"
            sentences.append(f"{setting}, {model}: {told}")
        best: dict[str, float] = {}
        ours = {row["task"]: row["median"] for row in own if row["measure"] == "test AUC" and row["library"] == OURS}
        for row in peers:
            if row["measure"] == "test AUC":
                best[row["task"]] = max(best.get(row["task"], 0), row["median"])
        if best:
            gap = min(ours[task] - value for task, value in best.items())
            reached = "reached" if gap >= -AUC_MARGIN else "missed"
            told = f"AUC {gap:+.4f} to the best peer's, goal {-AUC_MARGIN}: {reached}"
            sentences.append(f"{setting}, {model}: {told}")
    return sentences
