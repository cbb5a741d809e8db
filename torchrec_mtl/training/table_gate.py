"""The backward pass in two: the dense part, and that of sharded tables, which updates them and cannot be undone."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.distributed.embedding import ShardedEmbeddingCollection
from torchrec.distributed.embeddingbag import ShardedEmbeddingBagCollection
from torchrec.distributed.mc_embeddingbag import ShardedManagedCollisionEmbeddingBagCollection
from torchrec.optim.optimizers import in_backward_optimizer_filter
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

_SHARDED = (
    ShardedEmbeddingBagCollection,
    ShardedEmbeddingCollection,
    ShardedManagedCollisionEmbeddingBagCollection,
)


def leaves(parameters: Iterable[Tensor]) -> list[Tensor]:
    """The tensors that collect the gradients of ``parameters``, each once; replicated tables are slices of one."""
    found = (getattr(parameter, "_original_tensor", parameter) for parameter in parameters)
    return list({id(each): each for each in found}.values())


class TableGate:
    """Keeps a backward pass out of the collections that have tables with a fused optimizer, until `open`.

    In the place of their output, these collections hand on a leaf of the graph, which collects its gradient.

    Args:
        model: model returned by `distribute`.

    Attributes:
        replicated: tables without a fused optimizer in these collections; their gradients come from behind the gate.
    """

    def __init__(self, model: nn.Module) -> None:
        self._cuts: list[tuple[Tensor, Tensor]] = []  # an output, and the leaf in its place
        fused = (m for m in model.modules() if dict(in_backward_optimizer_filter(m.named_parameters(), True)))
        self._collections = [module for module in fused if isinstance(module, _SHARDED)]
        parameters = chain.from_iterable(module.named_parameters() for module in self._collections)
        self.replicated = leaves(p for _, p in in_backward_optimizer_filter(parameters))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keeps the backward pass of the forward pass in this context out; the one before is forgotten."""
        self._cuts.clear()
        hooks = [module.register_forward_hook(self._on_output) for module in self._collections]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _on_output(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            embeddings = output[0] if isinstance(output, tuple) else output  # with managed collisions, ids too
            embeddings.callbacks.append(self._cut)  # the ranks' exchange may still be under way

    def _cut(self, output: KeyedTensor | dict[str, JaggedTensor]) -> KeyedTensor | dict[str, JaggedTensor]:
        if isinstance(output, dict):
            return {
                key: JaggedTensor(self._leaf(of_key.values()), lengths=of_key.lengths(), offsets=of_key.offsets())
                for key, of_key in output.items()
            }
        leaf = self._leaf(output.values())
        return KeyedTensor(output.keys(), output.length_per_key(), leaf, output.key_dim())

    def _leaf(self, values: Tensor) -> Tensor:
        leaf = values.detach().requires_grad_()
        self._cuts.append((values, leaf))
        return leaf

    def gradients(self) -> list[Tensor]:
        """The gradients that wait before the gate, after a backward pass."""
        return [leaf.grad for _, leaf in self._cuts if leaf.grad is not None]

    def open(self) -> None:
        """Goes on with the backward pass: tables with a fused optimizer are updated, replicated ones get gradients."""
        outputs = [output for output, leaf in self._cuts if leaf.grad is not None]
        if outputs:
            torch.autograd.backward(outputs, self.gradients())
        self._cuts.clear()  # whose graph refers to the tables

    def pass_by(self) -> None:
        """Updates no table; adds zeros to the gradients of replicated ones, whose replicas wait for a backward pass."""
        outputs = [output for output, _ in self._cuts]
        if self.replicated:
            torch.autograd.backward(outputs, [torch.zeros_like(each) for each in outputs], inputs=self.replicated)
        self._cuts.clear()
