"""Other readings of what the papers leave open, each beside the model that it changes in one thing."""

from collections.abc import Mapping

from torchrec_mtl import losses
from torchrec_mtl.systems import BPCM, TAFE, System

# TAFE's towers give p(task), held to the funnel by eq. (25); they may give p(task | step before), and the loss that eq.
# (25) leaves open may then be a likelihood. The text leaves open how many indicators a task has, and eq. (21) whether
# heads are mixed. BPCM eq. (9) attends to h alone, while the text weighs what is passed on and the task's own.
READINGS: Mapping[str, System] = {
    system.name: system
    for system in (
        TAFE.variant("conditional", "TAFE, conditional towers", probabilities="conditional"),
        TAFE.variant("exit_depth", "TAFE, exit depth", loss=losses.ExitDepthLoss, probabilities="conditional"),
        TAFE.variant("indicators", "TAFE, four indicators a task", num_indicators=4),
        TAFE.variant("no_projection", "TAFE, no output projection", adapter_output_projection=False),
        BPCM.variant("attends_to_both", "BPCM, attends to both", attends_to="both"),
    )
}
