"""Reads and writes X3D-M as mmaction2, SlowFast and pytorchvideo save it, and converts it to temporal-shift X3D.

All three save the same tensors under different names (docs/sources.md, "Weight files"); Duet uses mmaction2's names.
The conversion to temporal shift sums the depthwise kernels over time and drops conv1_t. The converted network is a
starting point for training, and does not compute the same function as X3D-M.
"""

import torch

from models.weights.files import WeightsError
from models.weights.folding import folded
from models.weights.renaming import Rules, State, renamed, turned

STAGES = (1, 2, 3, 4)
# This layer has no batch norm in pytorchvideo, because its input and output have equal widths.
BARE = "backbone.layer1.0.downsample"

MMACTION2: Rules = (
    ("backbone.{rest}", "backbone.{rest}"),
    ("cls_head.fc{n}.{rest}", "cls_head.fc{n}.{rest}"),
)

SLOWFAST: Rules = (
    ("s1.pathway0_stem.conv_xy.weight", "backbone.conv1_s.conv.weight"),
    ("s1.pathway0_stem.conv.weight", "backbone.conv1_t.conv.weight"),
    ("s1.pathway0_stem.bn.{rest}", "backbone.conv1_t.bn.{rest}"),
    *(
        (f"s{stage + 1}.pathway0_res{{block}}.{theirs}", f"backbone.layer{stage}.{{block}}.{ours}")
        for stage in STAGES
        for theirs, ours in (
            ("branch2.a.weight", "conv1.conv.weight"),
            ("branch2.a_bn.{rest}", "conv1.bn.{rest}"),
            ("branch2.b.weight", "conv2.conv.weight"),
            ("branch2.b_bn.{rest}", "conv2.bn.{rest}"),
            ("branch2.se.fc{n}.{rest}", "se_module.fc{n}.{rest}"),
            ("branch2.c.weight", "conv3.conv.weight"),
            ("branch2.c_bn.{rest}", "conv3.bn.{rest}"),
            ("branch1.weight", "downsample.conv.weight"),
            ("branch1_bn.{rest}", "downsample.bn.{rest}"),
        )
    ),
    ("head.conv_5.weight", "backbone.conv5.conv.weight"),
    ("head.conv_5_bn.{rest}", "backbone.conv5.bn.{rest}"),
    ("head.lin_5.weight", "cls_head.fc1.weight"),
    ("head.projection.{rest}", "cls_head.fc2.{rest}"),
)

PYTORCHVIDEO: Rules = (
    ("blocks.0.conv.conv_t.weight", "backbone.conv1_s.conv.weight"),  # pytorchvideo swaps conv_t and conv_xy
    ("blocks.0.conv.conv_xy.weight", "backbone.conv1_t.conv.weight"),
    ("blocks.0.norm.{rest}", "backbone.conv1_t.bn.{rest}"),
    *(
        (f"blocks.{{stage}}.res_blocks.{{block}}.{theirs}", f"backbone.layer{{stage}}.{{block}}.{ours}")
        for theirs, ours in (
            ("branch2.conv_a.weight", "conv1.conv.weight"),
            ("branch2.norm_a.{rest}", "conv1.bn.{rest}"),
            ("branch2.conv_b.weight", "conv2.conv.weight"),
            ("branch2.norm_b.0.{rest}", "conv2.bn.{rest}"),
            ("branch2.norm_b.1.block.0.{rest}", "se_module.fc1.{rest}"),
            ("branch2.norm_b.1.block.2.{rest}", "se_module.fc2.{rest}"),
            ("branch2.conv_c.weight", "conv3.conv.weight"),
            ("branch2.norm_c.{rest}", "conv3.bn.{rest}"),
            ("branch1_conv.weight", "downsample.conv.weight"),
            ("branch1_norm.{rest}", "downsample.bn.{rest}"),
        )
    ),
    ("blocks.5.pool.pre_conv.weight", "backbone.conv5.conv.weight"),
    ("blocks.5.pool.pre_norm.{rest}", "backbone.conv5.bn.{rest}"),
    ("blocks.5.pool.post_conv.weight", "cls_head.fc1.weight"),
    ("blocks.5.proj.{rest}", "cls_head.fc2.{rest}"),
)


def read(state: State, rules: Rules) -> tuple[State, list[str]]:
    """Return the tensors under mmaction2's names, and the names that no rule covers.

    If the batch norm of BARE is missing, as in pytorchvideo's files, a batch norm that changes nothing is added.
    """
    ours, unknown = renamed(state, rules)
    if "cls_head.fc1.weight" in ours:
        ours["cls_head.fc1.weight"] = ours["cls_head.fc1.weight"].flatten(1)
    if f"{BARE}.conv.weight" in ours and f"{BARE}.bn.weight" not in ours:
        ours |= identity_norm(ours[f"{BARE}.conv.weight"].shape[0])
    return ours, unknown


def write(state: State, rules: Rules) -> tuple[State, list[str]]:
    """Rename mmaction2's tensors to the layout of `rules`. Also return the names that no rule covers.

    Raises WeightsError if the layout has no place for a batch norm that changes its input.
    """
    state = dict(state)
    if rules is not MMACTION2 and "cls_head.fc1.weight" in state:
        state["cls_head.fc1.weight"] = state["cls_head.fc1.weight"][..., None, None, None]
    if rules is PYTORCHVIDEO and f"{BARE}.conv.weight" in state:
        for name, tensor in identity_norm(state[f"{BARE}.conv.weight"].shape[0]).items():
            if not name.endswith("num_batches_tracked") and not torch.equal(state[name], tensor):
                raise WeightsError(
                    f"{BARE}.bn changes its input, and pytorchvideo's X3D-M has no such layer: choose --to slowfast"
                )
            del state[name]
    return renamed(state, turned(rules))


def identity_norm(channels: int) -> State:
    """Return tensors of a batch norm for BARE that changes nothing (up to eps). BARE has no norm in pytorchvideo."""
    values = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
    norm = {f"{BARE}.bn.{name}": torch.full((channels,), value) for name, value in values.items()}
    return norm | {f"{BARE}.bn.num_batches_tracked": torch.tensor(0)}


def to_temporal_shift(state: State) -> State:
    """Convert to the RGB stream of the two-stream X3D, under our names.

    The depthwise kernels are summed over time, and the norm of conv1_t moves to conv1_s. The convolution conv1_t and
    the classifier are dropped. The result needs fine-tuning. One reason is that X3D-M was trained on pixels
    normalised with mean 114.75 and standard deviation 57.38.
    """
    stream = {}
    for name, tensor in state.items():
        if name == "backbone.conv1_t.conv.weight" or not name.startswith("backbone."):
            continue
        if name.endswith(".conv2.conv.weight"):
            tensor = tensor.sum(2, keepdim=True)
        stream["rgb_" + name.replace("conv1_t.bn", "conv1_s.bn")] = tensor
    return folded(stream)
