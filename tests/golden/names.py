"""What parameters were called when `values.npz` was recorded."""

_NOW_AND_THEN = {
    "model.over_arch.extraction.": "model.over_arch.",
}


def old_name(new: str) -> str:
    """The map from new to old parameter names: the first prefix that fits is replaced."""
    for now, then in _NOW_AND_THEN.items():
        if new.startswith(now):
            return then + new.removeprefix(now)
    return new
