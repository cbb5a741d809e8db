"""Lookup and pooling of all fields of a batch in one C++ operation, on the CPU.

TorchRec's collections call an operation for each table; at a batch of one, the calls take most of the time of a model.
The kernel is optional: ``python -m torchrec_mtl.ops.build`` builds it. Where it is not built, callers go TorchRec's
way. `reference.py` is the definition.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from torchrec_mtl.ops import library


def _like_output(
    tables: Sequence[Tensor],
    table_of_field: Sequence[int],
    key_of_field: Sequence[int],
    mean_of_field: Sequence[int],
    ids: Tensor,
    offsets: Tensor,
    batch: int,
    weights: Tensor | None,
) -> Tensor:
    return tables[0].new_empty(batch, sum(tables[table].shape[1] for table in table_of_field))


if library.load():
    torch.library.register_fake("torchrec_mtl::embedding_bag_lookup", _like_output)


def lookup(
    tables: Sequence[Tensor],
    table_of_field: Sequence[int],
    key_of_field: Sequence[int],
    mean_of_field: Sequence[bool],
    ids: Tensor,
    offsets: Tensor,
    batch: int,
    weights: Tensor | None = None,
) -> Tensor:
    """Looks up and pools every field, ``F`` of them, of ``B`` samples, without gradients.

    Args:
        tables: the tables, each ``[rows, D_t]`` and contiguous; all float32 or all float64.
        table_of_field: position in ``tables`` of each field's table, ``F`` numbers.
        key_of_field: position of each field's key in the batch, ``F`` numbers.
        mean_of_field: whether each field's rows are averaged; summed if not. A bag without ids gives zeros.
        ids: ids of all keys, key by key and sample by sample, as the values of a KeyedJaggedTensor; int64 or int32.
        offsets: where the ids of each key and sample begin, and the end of the last, ``[keys * B + 1]``.
        batch: number of samples, ``B``.
        weights: factors of the rows, one for each id; a mean still divides by the number of ids.

    Returns:
        ``[B, sum(D_f)]``, the fields side by side: the same bits for any number of threads.

    Raises:
        InputError: if the kernel is not built, or the first table is not on the CPU and of one of these types.
        RuntimeError: if an id is not a row of its table, or another argument does not fit.

    Example::

        >>> table = torch.arange(6.0).view(3, 2)
        >>> ids, offsets = torch.tensor([2, 0, 1]), torch.tensor([0, 1, 3])
        >>> lookup([table], [0], [0], [True], ids, offsets, batch=2)
        tensor([[4., 5.],
                [1., 2.]])
    """
    library.require("lookup", tables[0])  # the operator compares the others
    pooled: Tensor = torch.ops.torchrec_mtl.embedding_bag_lookup(
        tables, table_of_field, key_of_field, mean_of_field, ids, offsets, batch, weights
    )
    return pooled
