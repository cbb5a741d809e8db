"""What the models of a comparison try on validation: the same number of candidates for each."""

from collections.abc import Mapping, Sequence

from torchrec_mtl.systems import SYSTEMS

Candidate = tuple[str, ...]  # overrides, path=value


def rates(*values: float) -> tuple[Candidate, ...]:
    """Candidates that differ in the learning rate, which tables and dense parameters share.

    Example::

        >>> rates(0.001)
        (('training.optimizer.learning_rate=0.001', 'training.table.learning_rate=0.001'),)
    """
    names = ("training.optimizer.learning_rate", "training.table.learning_rate")
    return tuple(tuple(f"{name}={value}" for name in names) for value in values)


def twelve(three: Sequence[Candidate], *pairs: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Twelve candidates over one choice of three and two or three choices of two.

    With two pairs they are all combinations. With three, each level of one choice meets each level of another equally
    often, so every choice is judged by all twelve runs.

    Example::

        >>> twelve([("a=1",), ("a=2",), ("a=3",)], (("b=0",), ("b=1",)), ((), ("c=1",)))[:3]
        (('a=1', 'b=0'), ('a=1', 'b=0', 'c=1'), ('a=1', 'b=1'))
    """
    made = []
    for number, level in enumerate(three):
        for first in (0, 1):
            for second in (0, 1):
                levels = (first, second, (first + second + number) % 2)
                made.append(tuple(level) + tuple(s for pair, i in zip(pairs, levels, strict=False) for s in pair[i]))
    return tuple(made)


_RATES = rates(2e-3, 4e-3, 8e-3)
_DECAYS = tuple((f"training.learning_rate_decay={decay}",) for decay in ("none", "linear"))
_DIMENSIONS = tuple((f"embedding_dim={dimension}",) for dimension in (8, 16))  # 32 was no better for four models

# Models whose size is tried too; the others' were found before, and are in `datasets.complete_journey.sizes`.
_SIZES: Mapping[str, tuple[str, str, str]] = {
    "sluice": ("layer_size", "64", "128"),
    "mose": ("hidden_size", "16", "8"),
    "mran": ("tower_layer_sizes", "[64]", "[128, 64]"),
    "adatt": ("layer_sizes", "[64, 32]", "[32, 32]"),
    "home": ("layer_size", "32", "64"),
    "resflow": ("tower_layer_sizes", "[64, 32]", "[128, 64]"),
    "dbmtl": ("bottom_layer_sizes", "[64, 32]", "[128, 64]"),
    "pepnet": ("tower_layer_sizes", "[64, 32]", "[32, 32]"),
    "stem": ("num_shared_experts", "8", "4"),
    "dcmt": ("tower_layer_sizes", "[64, 32]", "[128, 64]"),
    "ddpo": ("tower_layer_sizes", "[64, 32]", "[32, 32]"),
}


def _levels(name: str, *values: str) -> tuple[Candidate, ...]:
    return tuple((f"model_args.{name}={value}",) for value in values)


COMPLETE_JOURNEY: Mapping[str, tuple[Candidate, ...]] = {
    **{name: twelve(_RATES, _DECAYS, _DIMENSIONS) for name, system in SYSTEMS.items() if not system.ablation_of},
    **{name: twelve(_RATES, _DECAYS, _DIMENSIONS, _levels(*size)) for name, size in _SIZES.items()},
    "tafe": twelve(
        [  # narrower than 32 was worse
            (*_RATES[0], "embedding_dim=32"),
            (*_RATES[1], "embedding_dim=32"),
            (*_RATES[0], "embedding_dim=48"),
        ],
        _DECAYS,
        _levels("schedule", "[10.0, 0.01, 0.001]", "[10.0, 0.02, 0.001]"),  # the second ends at step 500 of 840
        _levels("selection", "keys", "mask"),
    ),
}
