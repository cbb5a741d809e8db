"""What constructors check of their arguments."""

from collections.abc import Sequence

from torchrec_mtl.errors import InputError


def check_counts(**counts: int | Sequence[int]) -> None:
    """Raises `InputError` unless each number, or all of a sequence, is at least 1.

    Example::

        >>> check_counts(num_layers=2, layer_sizes=(8, 0))
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: `layer_sizes` (=(8, 0)) must be at least 1
    """
    for name, value in counts.items():
        if any(count < 1 for count in (value if isinstance(value, Sequence) else [value])):
            raise InputError(f"`{name}` (={value}) must be at least 1")


def check_heads(embedding_dim: int, num_heads: int) -> None:
    """Raises `InputError` unless ``num_heads`` divides ``embedding_dim``."""
    if num_heads < 1 or embedding_dim % num_heads:
        raise InputError(f"`num_heads` (={num_heads}) must divide `embedding_dim` (={embedding_dim})")
