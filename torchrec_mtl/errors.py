"""What this library raises on purpose: a user's mistake, and a run that cannot go on."""


class InputError(ValueError):
    """A wrong argument, file or row, told in one sentence: the thing, the rule and the value.

    Programs of this library print the sentence and exit with status 2, without a traceback.

    Example::

        >>> raise InputError("`num_heads` (=3) must divide `embedding_dim` (=8)")
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: `num_heads` (=3) must divide `embedding_dim` (=8)
    """


class TrainingError(RuntimeError):
    """A run that cannot go on through no argument's fault (a NaN loss, a full disk), told in one sentence.

    Programs of this library print the sentence and exit with status 1. The last checkpoint stays.
    """
