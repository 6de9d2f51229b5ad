"""What a store tells of its samples, labels and layers: similarity, rank, wrong labels, copies, drift."""

from spile.inspection.alignment import Similarity, minibatch_cka, similarity, unbiased_hsic
from spile.inspection.diagnosing import Diagnosis, diagnose
from spile.inspection.drifting import Drift, DriftRow, EnergyTest, drift, energy_test
from spile.inspection.hints import Hint, h_score, hints, logme
from spile.inspection.mislabelled import LabelErrors, label_errors
from spile.inspection.ranks import Rank, effective_rank, rank_of

__all__ = [
    "Diagnosis",
    "Drift",
    "DriftRow",
    "EnergyTest",
    "Hint",
    "LabelErrors",
    "Rank",
    "Similarity",
    "diagnose",
    "drift",
    "effective_rank",
    "energy_test",
    "h_score",
    "hints",
    "label_errors",
    "logme",
    "minibatch_cka",
    "rank_of",
    "similarity",
    "unbiased_hsic",
]
