"""Other readings of what the papers leave open, each beside the model that it changes in one thing."""

from collections.abc import Mapping
from typing import Any

from torchrec_mtl import losses
from torchrec_mtl.systems import BPCM, TAFE, System


def _reading(base: System, name: str, title: str, loss: Any = None, **model_args: Any) -> System:
    return System(
        f"{base.name}_{name}",
        f"{base.title}, {title}",
        base.model,
        loss or base.loss,
        {**base.model_args, **model_args},
        fixed=tuple(model_args),
        ablation_of=base.name,
    )


# TAFE's towers give p(task), held to the funnel by eq. (25); they may give p(task | step before), and the loss that eq.
# (25) leaves open may then be a likelihood. The text leaves open how many indicators a task has, and eq. (21) whether
# heads are mixed. BPCM eq. (9) attends to h alone, while the text weighs what is passed on and the task's own.
READINGS: Mapping[str, System] = {
    system.name: system
    for system in (
        _reading(TAFE, "conditional", "conditional towers", probabilities="conditional"),
        _reading(TAFE, "exit_depth", "exit depth", losses.ExitDepthLoss, probabilities="conditional"),
        _reading(TAFE, "indicators", "four indicators a task", num_indicators=4),
        _reading(TAFE, "no_projection", "no output projection", adapter_output_projection=False),
        _reading(BPCM, "attends_to_both", "attends to both", attends_to="both"),
    )
}
