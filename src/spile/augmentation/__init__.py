"""Augmentation steered by activations: where in each image a layer is active decides what is changed.

guide = spile.guide("timm:resnet18", at="layer3")
augment = spile.augment(guide, ByLevel(Quantile(0.5, 0.85), low=v2.GaussianBlur(5), high=v2.ColorJitter(0.4)))
images, labels, _ = augment(images, labels, ids=ids, epoch=epoch)
"""

from spile.augmentation.augmenter import Augmenter
from spile.augmentation.cropping import Crop
from spile.augmentation.features import ISDA, FeatureDropout, FeatureNoise, ManifoldMixup, MoEx, SemanticNoise
from spile.augmentation.geometry import Axis, Frame, Grid
from spile.augmentation.maps import Maps, cut_from
from spile.augmentation.mixes import AttentiveCutMix, MapCutMix, Mix, SaliencyMix, SnapMix
from spile.augmentation.policies import (
    AttentionCrop,
    AttentionDrop,
    ByLevel,
    Inside,
    KeepSalient,
    Outside,
    Photometric,
    Policy,
    TargetedCutout,
)
from spile.augmentation.settings import Augmented
from spile.augmentation.thresholds import Absolute, Mass, Otsu, Quantile, Threshold

__all__ = [
    "ISDA",
    "Absolute",
    "AttentionCrop",
    "AttentionDrop",
    "AttentiveCutMix",
    "Augmented",
    "Augmenter",
    "Axis",
    "ByLevel",
    "Crop",
    "FeatureDropout",
    "FeatureNoise",
    "Frame",
    "Grid",
    "Inside",
    "KeepSalient",
    "ManifoldMixup",
    "MapCutMix",
    "Maps",
    "Mass",
    "Mix",
    "MoEx",
    "Otsu",
    "Outside",
    "Photometric",
    "Policy",
    "Quantile",
    "SaliencyMix",
    "SemanticNoise",
    "SnapMix",
    "TargetedCutout",
    "Threshold",
    "cut_from",
]
