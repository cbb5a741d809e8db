"""Every system that the jobs can train: the models, and the papers' ablations, which are arguments of theirs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from torchrec_mtl import losses, models
from torchrec_mtl.models.escm2 import ESCM2Train
from torchrec_mtl.training import MultiTaskTrain


@dataclass(frozen=True)
class Entry:
    """A model and what goes with it.

    Args:
        title: its name in tables and pictures.
        model: the class.
        arch: the class that takes the model's own arguments: its over arch, or itself.
        loss: the class of its paper's objective.
        train: what puts the two together.
        model_args: arguments that make it this system.
        loss_args: likewise, of the loss.
        ablation_of: the model that this one takes a part from; its settings and its choices are that model's.
    """

    title: str
    model: Callable[..., nn.Module]
    arch: Callable[..., nn.Module]
    loss: Callable[..., nn.Module] = losses.CrossEntropyLoss
    train: Callable[..., nn.Module] = MultiTaskTrain
    model_args: Mapping[str, Any] = field(default_factory=dict)
    loss_args: Mapping[str, Any] = field(default_factory=dict)
    ablation_of: str | None = None


_ESCM2 = Entry("ESCM2", models.ESCM2, models.ESCM2Arch, losses.CounterfactualLoss, ESCM2Train)
_BPCM = Entry("BPCM", models.BPCM, models.BPCMArch, losses.CalibratedLoss)
_TAFE = Entry("TAFE", models.TAFE, models.TAFEArch, losses.DependenceLoss)


def _without(part: str, whole: Entry, **arguments: Any) -> Entry:
    """``whole`` without ``part``; arguments are the model's, but for ``dependence_weight``."""
    loss_args = {name: arguments.pop(name) for name in ("dependence_weight",) if name in arguments}
    title = f"{whole.title} w/o {part}"
    return replace(whole, title=title, model_args=arguments, loss_args=loss_args, ablation_of=whole.title.lower())


MODELS = {
    "single_task": Entry("Single-Task", models.SingleTask, models.SingleTask),
    "shared_bottom": Entry("Shared-Bottom", models.SharedBottom, models.SharedBottomArch),
    "cross_stitch": Entry("Cross-Stitch", models.CrossStitch, models.CrossStitchArch),
    "omoe": Entry("OMoE", models.OMoE, models.OMoEArch),
    "mmoe": Entry("MMoE", models.MMoE, models.MMoEArch),
    "mmoe_dselect_k": Entry("MMoE, DSelect-k", models.MMoE, models.MMoEArch, model_args={"gate": "dselect_k"}),
    "ple": Entry("PLE", models.PLE, models.PLEArch),
    "esmm": Entry("ESMM", models.ESMM, models.ESMMArch),
    "escm2_ips": replace(_ESCM2, title="ESCM2-IPS", model_args={"estimator": "ips"}),
    "escm2_dr": replace(_ESCM2, title="ESCM2-DR", model_args={"estimator": "dr"}),
    "aitm": Entry("AITM", models.AITM, models.AITMArch, losses.CalibratedLoss),
    "bpcm": _BPCM,
    "tafe": _TAFE,
    "bpcm_wo_att": _without("Att", _BPCM, attention=False),
    "bpcm_wo_org": _without("Org", _BPCM, aggregation=False),
    "bpcm_wo_gate": _without("Gate", _BPCM, gate=False),
    "bpcm_wo_bpc": _without("BPC", _BPCM, conversion=False),
    "tafe_wo_asrg": _without("ASRG", _TAFE, sample_wise=False),
    "tafe_wo_tsa": _without("TSA", _TAFE, task_indicators=False),
    "tafe_wo_dependence": _without("L_D-Task", _TAFE, dependence_weight=0.0),
}
