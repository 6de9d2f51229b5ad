"""Deep supervision: auxiliary heads on any layer, their targets and weights.

supervised = spile.supervise(model, example=x, num_classes=10)
out = supervised(x)                                  # out.main, out.aux["layer2"]
loss = supervised.loss(out, y, progress=step / steps)
loss.total.backward()
model = supervised.strip()
"""

from spile.supervision.heads import MLP, Bottleneck, Flatten, HeadSpec, Linear, Pixels, Token
from spile.supervision.settings import Certificate, Loss, SupervisedOutput
from spile.supervision.targets import Labels, PseudoLabels, SelfDistill, SmoothedLabels, Target, Teacher
from spile.supervision.weights import (
    Aggregated,
    Constant,
    CosineDecay,
    DepthRamp,
    LinearDecay,
    Schedule,
    Uncertainty,
)

__all__ = [
    "MLP",
    "Aggregated",
    "Bottleneck",
    "Certificate",
    "Constant",
    "CosineDecay",
    "DepthRamp",
    "Flatten",
    "HeadSpec",
    "Labels",
    "Linear",
    "LinearDecay",
    "Loss",
    "Pixels",
    "PseudoLabels",
    "Schedule",
    "SelfDistill",
    "SmoothedLabels",
    "SupervisedOutput",
    "Target",
    "Teacher",
    "Token",
    "Uncertainty",
]
