"""The parts of the models, with plain arguments; one file per section of a paper."""

import torchrec_mtl.stack as _stack  # noqa: F401  (refuses what does not go together)
from torchrec_mtl.modules.attention import Attention
from torchrec_mtl.modules.batch_norm import BatchNorm
from torchrec_mtl.modules.behavior_conversion import BehaviorPatternConversion
from torchrec_mtl.modules.cross_stitch import CrossStitchLayer, CrossStitchUnit, LayerStitchUnit
from torchrec_mtl.modules.dynamic_selector import (
    DynamicSelector,
    SmoothStepSchedule,
    advance_schedules,
    find_schedules,
    smooth_step,
)
from torchrec_mtl.modules.experts import Experts, ExtractionLayer, MixtureOfExperts
from torchrec_mtl.modules.feature_arch import FeatureArch, FieldProjection, as_features
from torchrec_mtl.modules.feature_extraction import TaskAwareExtraction
from torchrec_mtl.modules.feature_tower import ComplementaryGate, FeatureAggregation, FeatureTower
from torchrec_mtl.modules.funnel import MarginalFromConditional, conditional_rates
from torchrec_mtl.modules.fusion import FusionLayer
from torchrec_mtl.modules.gate_unit import EmbeddingGate, GateUnit
from torchrec_mtl.modules.gates import DSelectGate, DSelectK, Gate, SoftmaxGate
from torchrec_mtl.modules.heads import LabelStatistics, give_heads, start_values
from torchrec_mtl.modules.history_arch import HistoryArch
from torchrec_mtl.modules.history_attention import HistoryTransformer, TargetAttention
from torchrec_mtl.modules.history_config import HistoryConfig
from torchrec_mtl.modules.information_transfer import InformationTransfer
from torchrec_mtl.modules.initialization import he_normal_, initialize_linear_layers
from torchrec_mtl.modules.lstm import LSTMs
from torchrec_mtl.modules.mlp import MLP
from torchrec_mtl.modules.normalized_experts import FeatureGate, NormalizedExperts, SelfGatedMixture
from torchrec_mtl.modules.representation_generator import RepresentationGenerator, SelfAttentionStack
from torchrec_mtl.modules.task_adapter import PooledRepresentation, TaskAdapter
from torchrec_mtl.modules.task_relations import TaskFeatureAlignment, TaskRelations
from torchrec_mtl.modules.towers import TaskTowers, Tower, hidden_layers
from torchrec_mtl.modules.zero_collision import ZeroCollisionEmbeddingBagCollection

__all__ = [
    "MLP",
    "Attention",
    "BatchNorm",
    "BehaviorPatternConversion",
    "ComplementaryGate",
    "CrossStitchLayer",
    "CrossStitchUnit",
    "DSelectGate",
    "DSelectK",
    "DynamicSelector",
    "EmbeddingGate",
    "Experts",
    "ExtractionLayer",
    "FeatureAggregation",
    "FeatureArch",
    "FeatureGate",
    "FeatureTower",
    "FieldProjection",
    "FusionLayer",
    "Gate",
    "GateUnit",
    "HistoryArch",
    "HistoryConfig",
    "HistoryTransformer",
    "InformationTransfer",
    "LSTMs",
    "LabelStatistics",
    "LayerStitchUnit",
    "MarginalFromConditional",
    "MixtureOfExperts",
    "NormalizedExperts",
    "PooledRepresentation",
    "RepresentationGenerator",
    "SelfAttentionStack",
    "SelfGatedMixture",
    "SmoothStepSchedule",
    "SoftmaxGate",
    "TargetAttention",
    "TaskAdapter",
    "TaskAwareExtraction",
    "TaskFeatureAlignment",
    "TaskRelations",
    "TaskTowers",
    "Tower",
    "ZeroCollisionEmbeddingBagCollection",
    "advance_schedules",
    "as_features",
    "conditional_rates",
    "find_schedules",
    "give_heads",
    "he_normal_",
    "hidden_layers",
    "initialize_linear_layers",
    "smooth_step",
    "start_values",
]
