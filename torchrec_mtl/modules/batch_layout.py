"""What a model can check in a batch without reading its values: keys, their order, weights and columns."""

from collections.abc import Mapping, Sequence

from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.errors import InputError


class BatchLayout:
    """The form that all batches of a `FeatureArch` have.

    Sharded tables read the order of the keys, and whether all keys have the same batch size, from the first batch only,
    and ids of later batches by position. So the first batch decides, whether the tables are sharded or not.

    Args:
        num_embeddings: number of ids that each feature may have: the rows of its smallest table.
        is_weighted: whether the tables use weights of ids; None if any batch is right.
        dense_in_features: number of dense columns.

    Example::

        >>> import torch
        >>> layout = BatchLayout({"item": 9}, is_weighted=False, dense_in_features=0)
        >>> ids = KeyedJaggedTensor.from_lengths_sync(["user"], torch.tensor([3, 5]), torch.tensor([1, 1]))
        >>> layout.check(torch.empty(2, 0), ids)
        Traceback (most recent call last):
        torchrec_mtl.errors.InputError: `sparse_features` (with keys ['user']) must have the key 'item' of a table
    """

    def __init__(self, num_embeddings: Mapping[str, int], is_weighted: bool | None, dense_in_features: int) -> None:
        self.num_embeddings = dict(num_embeddings)
        self.is_weighted, self.dense_in_features = is_weighted, dense_in_features
        self._keys: list[str] | None = None  # of the first batch
        self._varies = False

    def check(self, dense_features: Tensor | None, sparse_features: KeyedJaggedTensor) -> None:
        """Checks ``[B, num_dense]`` and the sparse features; None stands for no dense columns.

        Raises:
            InputError: if the keys or their order differ from the first batch's; a table's key is missing; ids have
                weights and the tables use none, or the reverse; there are more or fewer dense columns; or keys begin to
                have batch sizes of their own after the first batch.
        """
        keys, varies = sparse_features.keys(), sparse_features.variable_stride_per_key()
        if self._keys is None:
            self._check_first(keys)
            self._keys, self._varies = list(keys), varies
        elif keys != self._keys:
            rule = f"must be those of the first batch, in the same order: {self._keys}"
            raise InputError(f"the keys of `sparse_features` (={list(keys)}) {rule}")
        if varies and not self._varies:
            raise InputError("`sparse_features` must have one batch size for all keys, as it had in the first batch")
        if self.is_weighted is not None and (sparse_features.weights_or_none() is not None) != self.is_weighted:
            given, rule = ("no weights", "True") if self.is_weighted else ("weights", "False")
            raise InputError(
                f"`sparse_features` (with {given} of ids) must be as the tables' `is_weighted` (={rule}) says"
            )
        if dense_features is None and not self.dense_in_features:
            return
        if dense_features is None or dense_features.ndim != 2 or dense_features.shape[1] != self.dense_in_features:
            shape = "None" if dense_features is None else f"of shape {list(dense_features.shape)}"
            rule = f"must be [B, {self.dense_in_features}], as `dense_in_features` (={self.dense_in_features}) says"
            raise InputError(f"`dense_features` ({shape}) {rule}")

    def _check_first(self, keys: Sequence[str]) -> None:
        named = f"`sparse_features` (with keys {list(keys)})"
        if len(set(keys)) < len(keys):
            raise InputError(f"{named} must have each key once")
        for key in self.num_embeddings:
            if key not in keys:
                raise InputError(f"{named} must have the key {key!r} of a table")
