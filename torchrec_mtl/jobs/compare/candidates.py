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


def twelve(three: Sequence[Candidate], *pairs: tuple[Candidate, Candidate]) -> tuple[Candidate, ...]:
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
_DECAYS: tuple[Candidate, Candidate] = ((), ("training.learning_rate_decay=linear",))
_DIMENSIONS: tuple[Candidate, Candidate] = ((), ("embedding_dim=16",))  # 32 was no better for four models

# The sizes of the other models were found before; these try a second one.
_SIZES: Mapping[str, Candidate] = {
    "sluice": ("model_args.layer_size=128",),
    "mose": ("model_args.hidden_size=8",),
    "mran": ("model_args.tower_layer_sizes=[128, 64]",),
    "adatt": ("model_args.layer_sizes=[32, 32]",),
    "home": ("model_args.layer_size=64",),
    "resflow": ("model_args.tower_layer_sizes=[128, 64]",),
    "dbmtl": ("model_args.bottom_layer_sizes=[128, 64]",),
    "pepnet": ("model_args.tower_layer_sizes=[32, 32]",),
    "stem": ("model_args.num_shared_experts=4",),
    "dcmt": ("model_args.tower_layer_sizes=[128, 64]",),
    "ddpo": ("model_args.tower_layer_sizes=[32, 32]",),
}

COMPLETE_JOURNEY: Mapping[str, tuple[Candidate, ...]] = {
    **{name: twelve(_RATES, _DECAYS, _DIMENSIONS) for name, system in SYSTEMS.items() if not system.ablation_of},
    **{name: twelve(_RATES, _DECAYS, _DIMENSIONS, ((), size)) for name, size in _SIZES.items()},
    "tafe": twelve(
        [*_RATES[:2], (*_RATES[0], "embedding_dim=48")],  # narrower than 32 was worse
        _DECAYS,
        ((), ("model_args.schedule=[10.0, 0.02, 0.001]",)),  # the selector is binary after 500 of 840 steps
        ((), ("model_args.selection=mask",)),
    ),
}
