"""Rules that translate tensor names of mmaction2, PCAN, EPAM-Net and the guide (docs/sources.md, "Weight files")."""

from models.weights.folding import folded, unfolded
from models.weights.renaming import Rules, State, renamed, turned

HEADS: Rules = (
    ("cls_head.fc_{rest}", "cls_head.fc_{rest}"),
    ("cls_head.fr_coarse_{stream}.spatio_cl_net.cl_fc.{rest}", "cls_head.contrast_{stream}_coarse.cl_fc.{rest}"),
    ("cls_head.fr_{stream}.spatio_cl_net.cl_fc.{rest}", "cls_head.contrast_{stream}.cl_fc.{rest}"),
    ("cls_head.fr_{stream}.spatio_cl_net.avg_f", "cls_head.contrast_{stream}.prototypes"),
)
MMACTION2: Rules = (("backbone.{rest}", "backbone.{rest}"), *HEADS)
"""SlowOnly and RGBPoseConv3D, with or without PCAN's additions. Only contrast_* tensors have other published names."""
BACKBONES: Rules = (("{stream}_backbone.{rest}", "{stream}_backbone.{rest}"),)
GUIDE: Rules = (*BACKBONES, *HEADS)
EPAM: Rules = (
    *BACKBONES,
    ("{stream}_cls_head.fc_cls.{rest}", "cls_head.fc_{stream}.{rest}"),
    ("attention_module.spatial.{rest}", "attention.spatial.{rest}"),
    ("attention_module.conv_temporal_attention.weight", "attention.temporal.weight"),
)


def read(state: State, rules: Rules) -> tuple[State, list[str]]:
    """Convert published tensors to ours. Also return the published names that no rule covers."""
    ours, unknown = renamed(state, rules)
    return folded(ours), unknown


def write(state: State, rules: Rules) -> tuple[State, list[str]]:
    """Convert our tensors to published ones. Also return our names that no rule covers."""
    return renamed(unfolded(state), turned(rules))
