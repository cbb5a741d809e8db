"""All systems that the jobs can train. Each is a record of a model, its loss and the arguments that define the system.

The papers' ablations are systems too. To add your own, define a `System` in a module of yours and name it on the
command line: ``--models my_package.models:MY_SYSTEM``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from torchrec_mtl import losses, models
from torchrec_mtl.argument_types import check_fields
from torchrec_mtl.errors import check_file_name
from torchrec_mtl.modules import DSelectK, SmoothStepSchedule

LOSSES: Mapping[str, Callable[..., nn.Module]] = {
    "cross_entropy": losses.CrossEntropyLoss,
    "calibrated": losses.CalibratedLoss,
    "dependence": losses.DependenceLoss,
    "exit_depth": losses.ExitDepthLoss,
    "counterfactual": losses.CounterfactualLoss,
    "local_space": losses.LocalSpaceLoss,
    "delayed": losses.DelayedLoss,
    "focal": losses.FocalLoss,
    "label_smoothing": losses.LabelSmoothingLoss,
    "pairwise": losses.PairwiseLoss,
    "jrc": losses.JRCLoss,
    "dcmt": losses.DCMTLoss,
    "ddpo": losses.DDPOLoss,
}


@dataclass(frozen=True)
class System:
    """A model and the loss it is trained with.

    Args:
        name: name of the system on the command line, in folders and in results.
        title: name of the system in tables and pictures.
        model: class of the model, called as ``model(features, tasks, **model_args)``.
        loss: class of the loss, called as ``loss(tasks, **loss_args)``; normally the loss of the model's paper.
        model_args: arguments of the model that define this system.
        loss_args: arguments of the loss that define this system.
        fixed: names of model and loss arguments that no setting may replace, as that would make another system.
        small: arguments that make the model small, for tests.
        ablation_of: name of the system that this one removes a part of; it has the settings and choices of that system.

    Raises:
        InputError: if an argument is of another type, or ``name`` cannot be that of a folder.
    """

    name: str
    title: str
    model: Callable[..., nn.Module]
    loss: Callable[..., nn.Module] = losses.CrossEntropyLoss
    model_args: Mapping[str, Any] = field(default_factory=dict)
    loss_args: Mapping[str, Any] = field(default_factory=dict)
    fixed: tuple[str, ...] = ()
    small: Mapping[str, Any] = field(default_factory=dict)
    ablation_of: str | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_file_name("`name` of a system", self.name)

    @property
    def base(self) -> str:
        """Name of the system whose settings apply: the system that this one is an ablation of, or itself."""
        return self.ablation_of or self.name

    def without(
        self, part: str, name: str, *, loss_args: Mapping[str, Any] | None = None, **model_args: Any
    ) -> "System":
        """Returns the ablation that leaves out ``part`` by means of the given arguments, which are then fixed."""
        return self.variant(f"wo_{name}", f"{self.title} w/o {part}", loss_args=loss_args, **model_args)

    def variant(
        self,
        name: str,
        title: str,
        *,
        loss: Callable[..., nn.Module] | None = None,
        loss_args: Mapping[str, Any] | None = None,
        **model_args: Any,
    ) -> "System":
        """Returns the system that differs by the given loss and arguments, which are then fixed."""
        loss_args = loss_args or {}
        return replace(
            self,
            name=f"{self.name}_{name}",
            title=title,
            loss=loss or self.loss,
            model_args={**self.model_args, **model_args},
            loss_args={**self.loss_args, **loss_args},
            fixed=(*self.fixed, *model_args, *loss_args),
            ablation_of=self.name,
        )


_EXPERTS = {"expert_layer_sizes": (8, 6), "tower_layer_sizes": (8,)}

SINGLE_TASK = System("single_task", "Single-Task", models.SingleTask, small={"layer_sizes": (8,)})
SHARED_BOTTOM = System(
    "shared_bottom",
    "Shared-Bottom",
    models.SharedBottom,
    small={"bottom_layer_sizes": (8,), "tower_layer_sizes": (4,)},
)
CROSS_STITCH = System(
    "cross_stitch",
    "Cross-Stitch",
    models.CrossStitch,
    small={"layer_sizes": (8, 6), "tower_layer_sizes": (4,)},
)
SLUICE = System("sluice", "Sluice", models.Sluice, small={"layer_size": 8, "tower_layer_sizes": (4,)})
OMOE = System("omoe", "OMoE", models.OMoE, small={"num_experts": 3, **_EXPERTS})
MMOE = System("mmoe", "MMoE", models.MMoE, small={"num_experts": 3, **_EXPERTS})
MMOE_DSELECT_K = replace(MMOE, name="mmoe_dselect_k", title="MMoE, DSelect-k", model_args={"gate": DSelectK()})
MOSE = System("mose", "MoSE", models.MoSE, small={"num_experts": 3, "hidden_size": 6, "tower_layer_sizes": (4,)})
MRAN = System("mran", "MRAN", models.MRAN, small={"num_heads": 2, "tower_layer_sizes": (8,)})
ADATT = System("adatt", "AdaTT", models.AdaTT, small={"layer_sizes": (8, 6), "tower_layer_sizes": (8,)})
HOME = System(
    "home", "HoME", models.HoME, small={"layer_size": 6, "feature_gate_ranks": (3, 2), "tower_layer_sizes": (4,)}
)
RESFLOW = System("resflow", "ResFlow", models.ResFlow, small={"tower_layer_sizes": (8, 6)})
PLE = System("ple", "PLE", models.PLE, small={"num_task_experts": 1, **_EXPERTS})
DBMTL = System(
    "dbmtl",
    "DBMTL",
    models.DBMTL,
    small={"bottom_layer_sizes": (8,), "tower_layer_sizes": (6,), "relation_layer_sizes": (4,)},
)
PEPNET = System("pepnet", "PEPNet", models.PEPNet, small={"tower_layer_sizes": (8, 6)})
STEM = System("stem", "STEM", models.STEM, small={"num_shared_experts": 2, **_EXPERTS})
ESMM = System("esmm", "ESMM", models.ESMM, small={"tower_layer_sizes": (8,)})
ESCM2_IPS = System(
    "escm2_ips",
    "ESCM2-IPS",
    models.ESCM2,
    losses.CounterfactualLoss,
    model_args={"estimator": "ips"},
    fixed=("estimator",),
    small={"tower_layer_sizes": (8,)},
)
ESCM2_DR = replace(ESCM2_IPS, name="escm2_dr", title="ESCM2-DR", model_args={"estimator": "dr"})
DCMT = System("dcmt", "DCMT", models.DCMT, losses.DCMTLoss, small={"tower_layer_sizes": (8,)})
DDPO = System("ddpo", "DDPO", models.DDPO, losses.DDPOLoss, small={"tower_layer_sizes": (8, 6)})
AITM = System("aitm", "AITM", models.AITM, losses.CalibratedLoss, small={"tower_layer_sizes": (8, 6)})
BPCM = System(
    "bpcm",
    "BPCM",
    models.BPCM,
    losses.CalibratedLoss,
    small={"tower_layer_sizes": (8,), "num_heads": 2},
)
TAFE = System(
    "tafe",
    "TAFE",
    models.TAFE,
    losses.DependenceLoss,
    small={
        "num_layers": 3,
        "num_inducing_points": 5,
        "tower_layer_sizes": (4,),
        "selector_layer_sizes": (6,),
        "schedule": SmoothStepSchedule(start=1.0, rate=0.1, end=1e-3),
    },
)

SYSTEMS: Mapping[str, System] = {
    system.name: system
    for system in (
        SINGLE_TASK,
        SHARED_BOTTOM,
        CROSS_STITCH,
        SLUICE,
        OMOE,
        MMOE,
        MMOE_DSELECT_K,
        MOSE,
        MRAN,
        ADATT,
        HOME,
        RESFLOW,
        PLE,
        DBMTL,
        PEPNET,
        STEM,
        ESMM,
        ESCM2_IPS,
        ESCM2_DR,
        DCMT,
        DDPO,
        AITM,
        BPCM,
        TAFE,
        BPCM.without("Att", "att", attention=False),
        BPCM.without("Org", "org", aggregation=False),
        BPCM.without("Gate", "gate", gate=False),
        BPCM.without("BPC", "bpc", conversion=False),
        TAFE.without("ASRG", "asrg", sample_wise=False),
        TAFE.without("TSA", "tsa", task_indicators=False),
        TAFE.without("L_D-Task", "dependence", loss_args={"dependence_weight": 0.0}),
    )
}
