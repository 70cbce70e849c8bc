"""Networks, heads and losses: pure functions of tensors."""

from models.config import X3D_POSE, X3D_RGB, X3DPairConfig, X3DStreamConfig
from models.heads import Output
from models.two_stream import build_model

__all__ = ["X3D_POSE", "X3D_RGB", "Output", "X3DPairConfig", "X3DStreamConfig", "build_model"]
