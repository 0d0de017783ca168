"""Every YAML file as a typed model: competitions, experiments, recipes (`config.files` reads them).

A key that is not known is refused with its file and its place, so that no setting is ever ignored.
"""

from whaleid.config.base import Model
from whaleid.config.competition import Answer, Competition, Submission, Table
from whaleid.config.experiment import (
    AugmentConfig,
    Experiment,
    ExperimentBase,
    FeatureConfig,
    FreezeConfig,
    ImageConfig,
    ModelConfig,
    PretextExperiment,
    SamplerConfig,
    TrainConfig,
)
from whaleid.config.heads import (
    BySize,
    DeepClusterHead,
    DivideHead,
    Head,
    HeadSettings,
    JigsawHead,
    MarginHead,
    MetricHead,
    RotationHead,
    SiameseHead,
    SoftmaxHead,
    SumHead,
    WeightedHead,
)
from whaleid.config.local_matching import LearnedConfig, LocalConfig, PairsConfig, TreesConfig, VerifyConfig
from whaleid.config.recipe import (
    ClassifierConfig,
    CombineConfig,
    ConcatConfig,
    KnnConfig,
    PretrainConfig,
    PseudoConfig,
    Recipe,
)
from whaleid.config.retrieval import (
    AugmentationConfig,
    DiffusionConfig,
    ExpansionConfig,
    LabelConfig,
    ReciprocalConfig,
    RerankConfig,
)
from whaleid.config.stack import StackConfig

__all__ = [
    "Answer",
    "AugmentConfig",
    "AugmentationConfig",
    "BySize",
    "ClassifierConfig",
    "CombineConfig",
    "Competition",
    "ConcatConfig",
    "DeepClusterHead",
    "DiffusionConfig",
    "DivideHead",
    "ExpansionConfig",
    "Experiment",
    "ExperimentBase",
    "FeatureConfig",
    "FreezeConfig",
    "Head",
    "HeadSettings",
    "ImageConfig",
    "JigsawHead",
    "KnnConfig",
    "LabelConfig",
    "LearnedConfig",
    "LocalConfig",
    "MarginHead",
    "MetricHead",
    "Model",
    "ModelConfig",
    "PairsConfig",
    "PretextExperiment",
    "PretrainConfig",
    "PseudoConfig",
    "Recipe",
    "ReciprocalConfig",
    "RerankConfig",
    "RotationHead",
    "SamplerConfig",
    "SiameseHead",
    "SoftmaxHead",
    "StackConfig",
    "Submission",
    "SumHead",
    "Table",
    "TrainConfig",
    "TreesConfig",
    "VerifyConfig",
    "WeightedHead",
]
