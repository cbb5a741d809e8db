"""BPCM's states of all tasks, eq. (2)-(9): module by module, or in one operation where that makes no difference."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.modules.mlp import Perceptron

from torchrec_mtl.modules.attention import Attention
from torchrec_mtl.modules.behavior_conversion import BehaviorPatternConversion
from torchrec_mtl.modules.feature_tower import ComplementaryGate, FeatureAggregation, FeatureTower
from torchrec_mtl.modules.mlp import MLP
from torchrec_mtl.ops import library
from torchrec_mtl.ops.attention import BACKENDS
from torchrec_mtl.ops.backends import log_choice, requested_backend
from torchrec_mtl.ops.behavior_conversion import Edges, behavior_conversion

_UNITS = (FeatureTower, Attention, FeatureAggregation, ComplementaryGate, BehaviorPatternConversion)
_KNOWN = frozenset((*_UNITS, MLP, nn.Sequential, Perceptron, nn.Linear, nn.Dropout, nn.Identity))
# Measured with AVX2 and 512 KiB of cache a core: 0.4 to 0.98 of the modules' time, forward and backward, up to these.
_MAX_DIM, _MAX_FIELDS = 64, 128


def task_states(fields: Tensor, towers: nn.ModuleList, conversions: nn.ModuleList, edges: Edges) -> list[Tensor]:
    """Maps ``E [B, F, D]`` to the state ``Z_t [B, F, D]`` of each task, BPCM eq. (2)-(9).

    In training the operation seeds its dropout by PyTorch's generator, but draws other masks than the modules.

    Args:
        fields: the embeddings of the fields.
        towers: the `FeatureTower` of each task.
        conversions: the `BehaviorPatternConversion` of each edge.
        edges: for each conversion, the task whose state it converts and the task that receives it.

    Example::

        >>> towers = nn.ModuleList(FeatureTower(num_fields=6, embedding_dim=8) for _ in range(2))
        >>> conversions = nn.ModuleList([BehaviorPatternConversion(embedding_dim=8)])
        >>> [tuple(z.shape) for z in task_states(torch.randn(2, 6, 8), towers, conversions, [(0, 1)])]
        [(2, 6, 8), (2, 6, 8)]
    """
    if not torch.jit.is_scripting() and not isinstance(fields, torch.fx.Proxy):
        reason = _why_modules(fields, list(towers), list(conversions))
        log_choice("behavior_conversion", "modules" if reason else "cpp", reason or "it is faster for such shapes")
        if reason is None:
            return _in_one_operation(fields, list(towers), list(conversions), edges)
    queries = [tower(fields) for tower in towers]
    states = list(queries)
    for convert, (parent, task) in zip(conversions, edges, strict=True):
        states[task] = convert(queries[task], states[parent])  # BPCM eq. (7)
    return states


def _why_modules(fields: Tensor, towers: Sequence[Any], conversions: Sequence[Any]) -> str | None:
    """Returns why the modules are called; None if the operation computes the same, and is faster."""
    if torch.compiler.is_compiling() and not (torch.compiler.is_exporting() and library.is_carried()):
        return "a program that is compiled or exported may run where there is no kernel"
    if requested_backend("attention", "auto", BACKENDS) == "reference":
        return "the backend of attention is 'reference'"
    if not all(_is_plain(unit) for unit in (*towers, *conversions)):
        return "a module has a hook, or another class"
    if not all(_is_papers(tower) for tower in towers):
        return "a tower is not the paper's"
    forms = {(step.message.p, step.message.training, step.attention.num_heads) for step in conversions}
    if len(forms) != 1 or not all(_is_papers_step(step) for step in conversions):
        return "there is no conversion, or it is not the paper's, or not like the others"
    sizes = {(tower.attention.num_heads, tower.aggregation.mlp._mlp[0]._linear.out_features) for tower in towers}
    if len(sizes) != 1 or conversions[0].attention.num_heads != towers[0].attention.num_heads:
        return "towers or conversions have different sizes"
    if not (0 < fields.shape[1] <= _MAX_FIELDS and 0 < fields.shape[2] <= _MAX_DIM):
        return "they are faster for such shapes"
    tensors = (fields, *_weights(towers, conversions))
    return library.why_not(*tensors, types=library.kernels_types(*tensors)[0])


def _is_plain(module: nn.Module) -> bool:
    """Whether the module and those in it do what their classes say.

    Quantisation, LoRA and parametrisations change the class of a module, pruning and observers hook into it.
    """
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    known = type(module) in _KNOWN and not hooks
    return known and all(_is_plain(child) for child in module._modules.values() if child is not None)


def _is_papers(tower: Any) -> bool:
    if tower.gate is None or tower.aggregation.over != "embedding" or type(tower.aggregation.mlp) is not MLP:
        return False
    layers: list[Any] = list(tower.aggregation.mlp._mlp.children())
    relus = all(layer._activation_fn is torch.relu_ and layer._linear.bias is not None for layer in layers)
    return relus and len(layers) == 2


def _is_papers_step(step: Any) -> bool:
    return step.message.p < 1 and type(step.norm) is nn.Identity and step.attends_to == "message"


def _weights(towers: Sequence[Any], conversions: Sequence[Any]) -> list[Tensor]:
    """Returns the weights in the order of `behavior_conversion`."""
    weights: list[Tensor] = []
    for tower in towers:
        first, second = (layer._linear for layer in tower.aggregation.mlp._mlp)
        aggregation = [first.weight, first.bias, second.weight, second.bias]
        gate = [tower.gate.organic.weight, tower.gate.attended.weight]
        weights += [*tower.attention.weights(), *aggregation, *gate]
    return [*weights, *chain.from_iterable(step.attention.weights() for step in conversions)]


def _in_one_operation(fields: Tensor, towers: Sequence[Any], conversions: Sequence[Any], edges: Edges) -> list[Tensor]:
    message, num_heads = conversions[0].message, conversions[0].attention.num_heads
    dropout = message.p if message.training else 0.0
    seed = int(torch.randint(2**63 - 1, ())) if dropout else 0
    (fields, *weights), dtype = library.in_kernels_precision(fields, *_weights(towers, conversions))
    states = behavior_conversion(fields, weights, edges, num_heads, dropout, seed)
    return [state.to(dtype) for state in states]
