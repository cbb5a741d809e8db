"""What is measured on a GPU, in the order of its worth."""

from typing import Any, NamedTuple

_HERE = "benchmarks.gpu."
RECOMMENDER = ("torchrec", "fbgemm_gpu", "polars")
SUITE = ("pytest", "hypothesis")


class Step(NamedTuple):
    """A module whose ``measure(add, pretend, *arguments)`` hands each row to ``add``."""

    name: str
    seconds: int  # at most
    module: str
    arguments: tuple[Any, ...] = ()
    needs: tuple[str, ...] = ()  # packages, beside torch and Triton


def _stack(size: str, name: str, seconds: int, *arguments: Any) -> Step:
    return Step(f"stack, {size}, {name}", seconds, _HERE + "stack", (size, *arguments))


def _selected(size: str, share: float, seconds: int) -> Step:
    return _stack(size, f"{100 * share:.0f} % selected", seconds, (share,))


STEPS = (
    Step("smoke", 60, _HERE + "smoke"),
    *(_selected(size, share, 30) for share in (0.25, 1.0) for size in ("paper", "mid")),
    *(_selected("large", share, 40) for share in (0.25, 1.0)),
    Step("figure 8", 90, _HERE + "figure_8", needs=RECOMMENDER),
    Step("embeddings", 80, _HERE + "embeddings", needs=RECOMMENDER),
    Step("tests/gpu", 120, _HERE + "suite", ("tests/gpu",), SUITE),
    *(_stack(size, "compiled", 100, (0.25,), True) for size in ("paper", "mid", "large")),
    *(_stack(size, "10 to 60 % selected", 60, (0.1, 0.5, 0.6)) for size in ("paper", "mid", "large")),
    Step("tests of the kernels", 150, _HERE + "suite", ("tests/ops/inducing_attention",), SUITE),
)
