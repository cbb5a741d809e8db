"""The policy for ids that no table has, for training loops and servers that do not read batches with `BatchLoader`."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from torchrec_mtl.argument_types import checked
from torchrec_mtl.data.batch_checks import sizes_of_model
from torchrec_mtl.data.schema import Schema
from torchrec_mtl.errors import InputError

REFUSE = -1


class UnknownIds(nn.Module):
    """Puts the named row in place of each id that its table does not have, or refuses the id.

    Without it, sharded tables read and train row 0 in place of such an id, and quantised tables read row 0. It stands
    before a model, or before `check_batch` in a training loop. `BatchLoader` has done the same to its rows already. FX
    traces it and TorchScript compiles it, alone or with a quantised model behind it.

    Args:
        expected: schema of the data, whose fields say their ``unknown_row``; or a model with a `FeatureArch`, sharded
            or not, alone or in `MultiTaskTrain`.
        unknown_rows: row for unknown ids by key, only with a model; ids of keys without a row are refused.

    Raises:
        InputError: if a key is not one of the model's, its row is outside the table, or rows are given with a schema.

    Example::

        >>> from torchrec_mtl import TaskChain
        >>> from torchrec_mtl.data import Field
        >>> unknown_ids = UnknownIds(Schema("shop", [Field("store", 9, unknown_row=0)], TaskChain(["click"])))
        >>> ids = KeyedJaggedTensor.from_lengths_sync(["store"], torch.tensor([4, 9, -1]), torch.tensor([1, 1, 1]))
        >>> unknown_ids(ids).values()
        tensor([4, 0, 0])
    """

    @checked
    def __init__(self, expected: Schema | nn.Module, unknown_rows: Mapping[str, int] | None = None) -> None:
        super().__init__()
        rows: dict[str, int] = dict(unknown_rows or {})
        if isinstance(expected, Schema):
            if unknown_rows is not None:
                raise InputError("`unknown_rows` must be None with a schema, whose fields say their `unknown_row`")
            sizes = {field.name: field.num_embeddings for field in expected.fields}
            rows = {field.name: field.unknown_row for field in expected.fields if field.unknown_row is not None}
        else:
            sizes, _ = sizes_of_model(expected)
        for key, row in rows.items():
            if key not in sizes:
                raise InputError(f"`unknown_rows` (={rows}) must have keys of the model: {list(sizes)}")
            if type(row) is not int or not 0 <= row < sizes[key]:
                raise InputError(f"`unknown_rows` (={rows}) must have a row from 0 to {sizes[key] - 1} for {key!r}")
        self.keys, self.sizes = list(sizes), list(sizes.values())
        self.rows = [rows.get(key, REFUSE) for key in sizes]

    def forward(self, sparse_features: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """Returns ``sparse_features`` with known ids only; keys that the tables do not use stay as they are.

        Raises:
            InputError: if an id is outside its table and its key has no row for unknown ids. In TorchScript, it is a
                ``torch.jit.Error`` with the same sentence.
        """
        return _known_ids(sparse_features, self.keys, self.sizes, self.rows)


@torch.fx.wrap
def _known_ids(
    sparse_features: KeyedJaggedTensor,
    keys: list[str],
    sizes: list[int],
    rows: list[int],
) -> KeyedJaggedTensor:
    values, offsets = sparse_features.values(), sparse_features.offset_per_key()
    parts: list[Tensor] = []
    for position, key in enumerate(sparse_features.keys()):
        ids = values[offsets[position] : offsets[position + 1]]
        if key in keys:
            size, row = sizes[keys.index(key)], rows[keys.index(key)]
            unknown = (ids < 0) | (ids.long() >= size)  # beside int32, torch would wrap a large size
            if row >= 0:
                ids = torch.where(unknown, row, ids)
            elif bool(unknown.any()):
                rule = f"must be from 0 to {size - 1}, as no row stands for unknown ones"
                raise InputError(f"ids of '{key}' in `sparse_features` {rule}")
        parts.append(ids)
    return KeyedJaggedTensor(
        keys=sparse_features.keys(),
        values=torch.cat(parts),
        weights=sparse_features.weights_or_none(),
        lengths=sparse_features.lengths(),
        offsets=sparse_features.offsets(),
        stride_per_key_per_rank=sparse_features._stride_per_key_per_rank,
        inverse_indices=sparse_features.inverse_indices_or_none(),
    )
