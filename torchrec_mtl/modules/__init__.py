"""The parts models are made of, with plain arguments; one file a section of a paper."""

from torchrec_mtl.modules.attention import Attention
from torchrec_mtl.modules.behavior_conversion import BehaviorPatternConversion
from torchrec_mtl.modules.dynamic_selector import DynamicSelector, SmoothStepSchedule, smooth_step
from torchrec_mtl.modules.feature_arch import DenseArch, FieldProjection, SparseArch
from torchrec_mtl.modules.feature_tower import ComplementaryGate, FeatureAggregation, FeatureTower
from torchrec_mtl.modules.representation_generator import (
    FeatureInteraction,
    RepresentationGenerator,
    SelfAttentionStack,
)
from torchrec_mtl.modules.task_adapter import PooledRepresentation, TaskAdapter, TaskAdapterLayer
from torchrec_mtl.modules.towers import TaskTowers, Tower, start_from_base_rates

__all__ = [
    "Attention",
    "BehaviorPatternConversion",
    "ComplementaryGate",
    "DenseArch",
    "DynamicSelector",
    "FeatureAggregation",
    "FeatureInteraction",
    "FeatureTower",
    "FieldProjection",
    "PooledRepresentation",
    "RepresentationGenerator",
    "SelfAttentionStack",
    "SmoothStepSchedule",
    "SparseArch",
    "TaskAdapter",
    "TaskAdapterLayer",
    "TaskTowers",
    "Tower",
    "smooth_step",
    "start_from_base_rates",
]
