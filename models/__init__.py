"""Networks, heads and losses: pure functions of tensors."""

from models.classes import COARSE_MAPS, MA52, NTU60_SEMANTIC8, check_coarse_map, read_coarse_map
from models.config import (
    RESNET_POSE,
    RESNET_RGB,
    X3D_POSE,
    X3D_RGB,
    EpamConfig,
    PcanConfig,
    ResNetPathConfig,
    RGBPoseConfig,
    SingleStreamConfig,
    X3DPairConfig,
    X3DStreamConfig,
)
from models.heads import Output, adjust_logits
from models.networks import ModelConfig, build_model

__all__ = [
    "COARSE_MAPS",
    "MA52",
    "NTU60_SEMANTIC8",
    "RESNET_POSE",
    "RESNET_RGB",
    "X3D_POSE",
    "X3D_RGB",
    "EpamConfig",
    "ModelConfig",
    "Output",
    "PcanConfig",
    "RGBPoseConfig",
    "ResNetPathConfig",
    "SingleStreamConfig",
    "X3DPairConfig",
    "X3DStreamConfig",
    "adjust_logits",
    "build_model",
    "check_coarse_map",
    "read_coarse_map",
]
