"""Lookup and pooling of all fields of a batch in one C++ operation, on the CPU; and the update of what was looked up.

TorchRec's collections call an operation for each table; at a batch of one, the calls take most of the time of a model.
The kernels are optional: ``python -m torchrec_mtl.ops.build`` builds them. Where they are not built, callers go
TorchRec's way. `reference.py` has the definitions.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from torchrec_mtl.errors import InputError
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
    torch.library.register_fake("torchrec_mtl::embedding_bag_update", lambda *_: None)


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
    """Looks up and pools every field, ``F`` of them, of ``B`` samples.

    Args:
        tables: the tables, each ``[rows, D_t]`` and contiguous; all float32 or all float64. Those that require a
            gradient get a dense one, as `torch.nn.EmbeddingBag` gives, with first derivatives only.
        table_of_field: position in ``tables`` of each field's table, ``F`` numbers.
        key_of_field: position of each field's key in the batch, ``F`` numbers.
        mean_of_field: whether each field's rows are averaged; summed if not. A bag without ids gives zeros.
        ids: ids of all keys, key by key and sample by sample, as the values of a KeyedJaggedTensor; int64 or int32.
        offsets: where the ids of each key and sample begin, and the end of the last, ``[keys * B + 1]``.
        batch: number of samples, ``B``.
        weights: factors of the rows, one for each id; a mean still divides by the number of ids. They get no gradient.

    Returns:
        ``[B, sum(D_f)]``, the fields side by side: the same bits for any number of threads, and so are the gradients.

    Raises:
        InputError: if the kernel is not built, the first table is not on the CPU and of one of these types, or
            ``weights`` require a gradient.
        RuntimeError: if an id is not a row of its table, or another argument does not fit.

    Example::

        >>> table = torch.arange(6.0).view(3, 2)
        >>> ids, offsets = torch.tensor([2, 0, 1]), torch.tensor([0, 1, 3])
        >>> lookup([table], [0], [0], [True], ids, offsets, batch=2)
        tensor([[4., 5.],
                [1., 2.]])
    """
    library.require("lookup", tables[0])  # the operator compares the others
    bags = table_of_field, key_of_field, mean_of_field, ids, offsets, batch, weights
    if torch.is_grad_enabled():
        if weights is not None and weights.requires_grad:
            raise InputError("`weights` must not require a gradient, which the lookup does not give")
        if any(table.requires_grad for table in tables):
            return _Lookup.apply(bags, *tables)
    pooled: Tensor = torch.ops.torchrec_mtl.embedding_bag_lookup(tables, *bags)
    return pooled


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, bags: tuple[Any, ...], *tables: Tensor) -> Tensor:
        ctx.bags, ctx.tables = bags, tables
        return torch.ops.torchrec_mtl.embedding_bag_lookup(tables, *bags)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [torch.zeros_like(table) for table in ctx.tables]
        table, key, mean, ids, offsets, batch, weights = ctx.bags
        bags = table, key, mean, ids, offsets, batch
        update(gradients, [], *bags, gradient, "sgd", learning_rate=-1.0, weights=weights)
        return None, *gradients


def update(
    tables: Sequence[Tensor],
    states: Sequence[Sequence[Tensor]],
    table_of_field: Sequence[int],
    key_of_field: Sequence[int],
    mean_of_field: Sequence[bool],
    ids: Tensor,
    offsets: Tensor,
    batch: int,
    gradient: Tensor,
    optimizer: str,
    *,
    learning_rate: float,
    eps: float = 1e-8,
    betas: tuple[float, float] = (0.9, 0.999),
    weight_decay: float = 0.0,
    step: int = 1,
    weights: Tensor | None = None,
) -> None:
    """Updates the rows that `lookup` read, and their states, in place; other rows stay as they are.

    The gradients of a row that comes several times are summed first. The equations are those of fbgemm's fused
    optimizers; ``"adam"`` is, but for the place of ``eps``, `torch.optim.SparseAdam`.

    Args:
        tables, table_of_field, key_of_field, mean_of_field, ids, offsets, batch, weights: as in `lookup`; no two tables
            may share memory.
        states: lists of the optimizer's states, each with one tensor a table: none for ``"sgd"``; the sum of squares
            for ``"adagrad"``, ``[rows, D_t]``, and ``"rowwise_adagrad"``, ``[rows]``; the first moment
            ``[rows, D_t]`` and the second for ``"adam"``, ``[rows, D_t]``, and ``"rowwise_adam"``, ``[rows]``.
        gradient: gradient of what `lookup` returned, ``[B, sum(D_f)]``.
        optimizer: one of the five names above. A row-wise optimizer takes the mean of the squares over a row's columns.
        learning_rate: size of the step.
        eps: number added to the root of the second moment.
        betas: factors of Adam's former moments.
        weight_decay: Adam's weight decay, decoupled from the gradient; the other optimizers have none.
        step: number of this step, from 1, by which Adam corrects the moments.

    Raises:
        InputError: if the kernel is not built, or the first table is not on the CPU and of one of these types.
        RuntimeError: before any update, if an id is not a row of its table, or another argument does not fit.

    Example::

        >>> table, ids, offsets = torch.zeros(3, 2), torch.tensor([2, 2]), torch.tensor([0, 1, 2])
        >>> bags = [0], [0], [False], ids, offsets, 2
        >>> update([table], [], *bags, torch.ones(2, 2), "sgd", learning_rate=0.1)
        >>> table
        tensor([[ 0.0000,  0.0000],
                [ 0.0000,  0.0000],
                [-0.2000, -0.2000]])
    """
    library.require("update", tables[0])  # the operator compares the others
    torch.ops.torchrec_mtl.embedding_bag_update(
        tables,
        *(*states, [], [])[:2],
        table_of_field,
        key_of_field,
        mean_of_field,
        ids,
        offsets,
        batch,
        weights,
        gradient,
        optimizer,
        learning_rate,
        *betas,
        eps,
        weight_decay,
        step,
    )
