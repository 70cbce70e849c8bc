"""Networks, heads and losses: pure functions of tensors."""

from models.config import (
    RESNET_POSE,
    RESNET_RGB,
    X3D_POSE,
    X3D_RGB,
    ResNetPathConfig,
    RGBPoseConfig,
    SingleStreamConfig,
    X3DPairConfig,
    X3DStreamConfig,
)
from models.heads import Output
from models.two_stream import build_model

__all__ = [
    "RESNET_POSE",
    "RESNET_RGB",
    "X3D_POSE",
    "X3D_RGB",
    "Output",
    "RGBPoseConfig",
    "ResNetPathConfig",
    "SingleStreamConfig",
    "X3DPairConfig",
    "X3DStreamConfig",
    "build_model",
]
