"""Every YAML file as a typed, checked model: competitions, experiments, recipes (`configfiles` reads them).

A key that is not known is refused with its file and its place, so that no setting is ever ignored.
"""

from whaleid.config.base import Model
from whaleid.config.blend import BlendConfig
from whaleid.config.competition import Competition, Submission, Table
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
    PRETEXTS,
    BySize,
    DeepClusterHead,
    DivideHead,
    Head,
    JigsawHead,
    MarginHead,
    MetricHead,
    PretextHead,
    RotationHead,
    SiameseHead,
    SoftmaxHead,
    SumHead,
    WeightedHead,
)
from whaleid.config.recipe import (
    ClassifierConfig,
    CombineConfig,
    ConcatConfig,
    KnnConfig,
    LocalConfig,
    PretrainConfig,
    Recipe,
)

__all__ = [
    "PRETEXTS",
    "AugmentConfig",
    "BlendConfig",
    "BySize",
    "ClassifierConfig",
    "CombineConfig",
    "Competition",
    "ConcatConfig",
    "DeepClusterHead",
    "DivideHead",
    "Experiment",
    "ExperimentBase",
    "FeatureConfig",
    "FreezeConfig",
    "Head",
    "ImageConfig",
    "JigsawHead",
    "KnnConfig",
    "LocalConfig",
    "MarginHead",
    "MetricHead",
    "Model",
    "ModelConfig",
    "PretextExperiment",
    "PretextHead",
    "PretrainConfig",
    "Recipe",
    "RotationHead",
    "SamplerConfig",
    "SiameseHead",
    "SoftmaxHead",
    "Submission",
    "SumHead",
    "Table",
    "TrainConfig",
    "WeightedHead",
]
