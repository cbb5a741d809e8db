"""The one exception a user's mistake raises."""


class InputError(ValueError):
    """A wrong argument, file or row, told in one sentence: the thing, the rule and the value.

    Programs of this library print the sentence and exit with status 2, without a traceback.

    Example::

        >>> raise InputError("`num_heads` (=3) must divide `embedding_dim` (=8)")
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: `num_heads` (=3) must divide `embedding_dim` (=8)
    """
