"""TAFE's feature extraction: representation generator (ASRG) and task adapters (TSA), eq. (14)-(22)."""

from torch import Tensor, nn

from torchrec_mtl import ops
from torchrec_mtl.argument_types import checked
from torchrec_mtl.errors import InputError, check_choice
from torchrec_mtl.modules.representation_generator import RepresentationGenerator
from torchrec_mtl.modules.task_adapter import TaskAdapter
from torchrec_mtl.ops.inducing_attention import BACKENDS


class TaskAwareExtraction(nn.Module):
    """``adapter(generator(fields))``, or one operation that computes the same from the weights of both modules.

    Args:
        generator: representation generator with ``L`` layers of ``m`` heads.
        adapter: task adapter with the same number of layers and heads.
        backend: implementation. ``"modules"`` calls the two modules, which compute the equations as printed, so changes
            and hooks on them take effect. The backends of `torchrec_mtl.ops.inducing_attention` run the operation,
            which needs one selection for all layers and does not call the forward of the modules. ``"auto"`` uses the
            operation where it can, and chooses its backend.

    Raises:
        InputError: if ``backend`` is none of these, if it names the operation although each layer has a separate
            selector, or if the two modules differ in layers, heads or embedding dimension.

    Example::

        >>> import torch
        >>> generator = RepresentationGenerator(num_fields=6, embedding_dim=8, num_layers=2, num_inducing_points=5)
        >>> adapter = TaskAdapter(num_tasks=3, embedding_dim=8, num_layers=2)
        >>> fields = torch.randn(4, 6, 8)
        >>> adapted = TaskAwareExtraction(generator, adapter)(fields)
        >>> adapted.shape, torch.allclose(adapted, adapter(generator(fields)), atol=1e-5)
        (torch.Size([4, 3, 8]), True)
    """

    @checked
    def __init__(self, generator: RepresentationGenerator, adapter: TaskAdapter, backend: str = "auto") -> None:
        super().__init__()
        check_choice("backend", backend, ("modules", *BACKENDS))
        if not generator.selection_is_shared and backend not in ("auto", "modules"):
            raise InputError(
                f"`backend` (={backend!r}) needs a selection that all layers share; with `selector` 'per_layer' it "
                "must be 'auto' or 'modules'"
            )
        norms = (generator.norm_weight, adapter.norm_weight)  # [L, D], [L, T, D]
        sizes = [(len(x), x.shape[-1], m.num_heads) for x, m in zip(norms, (generator, adapter), strict=True)]
        if sizes[0] != sizes[1]:
            raise InputError(f"`adapter` (={sizes[1]}) must have the layers, dimension and heads of {sizes[0]}")
        self.generator, self.adapter, self.backend = generator, adapter, backend

    def forward(self, fields: Tensor) -> Tensor:
        """Maps ``H [B, F, D]`` to ``T^L [B, T * I, D]``, the ``I`` indicators of a task side by side."""
        generator, adapter = self.generator, self.adapter
        if self.backend == "modules" or not generator.selection_is_shared:
            return adapter(generator(fields))
        weights, heads = (generator.weights(), adapter.weights()), generator.num_heads
        stack = ops.InducingStack(*weights, heads, generator.residual, masked=generator.masked)
        return ops.inducing_stack(fields, generator.select(fields)[0], stack, self.backend)
