"""EPAM-Net: the attention equals its 5-D form and passes gradients to the pose stream. Mismatched sizes are refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.epam import PoseAttention, attend
from models.networks import build_model
from tests.models.small import SMALL_EPAM, epam_batch, stir


def plain_attention(net: PoseAttention, pose: Tensor) -> Tensor:
    """Compute the attention map [N, 1, T, H, W] of pose features [N, C, 3T, H, W] with 3-D layers."""
    pose = pose[:, :, ::3]
    both = torch.cat([pose.max(1, keepdim=True)[0], pose.mean(1, keepdim=True)], 1)
    bn = net.spatial.bn
    where = F.conv3d(both, net.spatial.conv.weight[:, :, None], padding=(0, 3, 3))
    where = F.batch_norm(where, bn.running_mean, bn.running_var, bn.weight, bn.bias, net.training, 0.01).sigmoid()
    line = F.adaptive_avg_pool3d(where, (where.shape[2], 1, 1))[..., 0, 0]
    when = F.conv1d(line, net.temporal.weight, padding=3).sigmoid()
    return where * when[..., None, None]


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("shape", [(2, 6, 9, 5, 3), (1, 4, 3, 2, 7)])
def test_attention_equals_plain_5d(mode, shape):
    torch.manual_seed(0)
    net = stir(PoseAttention()).double().train(mode == "train")
    twin = PoseAttention().double().train(mode == "train")
    twin.load_state_dict(net.state_dict())
    clip = torch.rand(shape, dtype=torch.float64)
    weight = torch.rand(shape[0], 1, shape[2] // 3, *shape[3:], dtype=torch.float64)
    leaves = [clip.clone().requires_grad_() for _ in range(2)]
    folded = leaves[0].transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
    ours = net(folded, shape[2]).unflatten(0, (shape[0], -1)).transpose(1, 2)
    expected = plain_attention(twin, leaves[1])
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)
    (ours * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(leaves[0].grad, leaves[1].grad, rtol=1e-10, atol=1e-14)
    for (name, got), want in zip(net.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(got.grad, want.grad, rtol=1e-10, atol=1e-14, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(net.spatial.bn.running_var, twin.spatial.bn.running_var, rtol=1e-12, atol=0)


def test_only_the_rgb_stream_is_attended_and_its_loss_trains_the_pose_stream():
    torch.manual_seed(0)
    model = stir(build_model(SMALL_EPAM)).eval()
    output = model(**epam_batch())
    output.losses["loss_rgb"].backward()
    assert model.pose_backbone.conv1_s.conv.weight.grad.abs().max() > 0
    assert model.attention.temporal.weight.grad.abs().max() > 0
    assert len([name for name in model.state_dict() if name.startswith("attention.")]) == 7
    torch.testing.assert_close(output.logits["sum"], output.logits["rgb"] + output.logits["pose"])
    assert set(output.losses) == {"loss_rgb", "loss_pose", "loss_rgb_coarse", "loss_pose_coarse"}


def test_sizes_that_do_not_match_are_refused_in_one_sentence():
    model = build_model(SMALL_EPAM)
    with pytest.raises(ValueError, match=r"8 is not divisible by 3: set clip.rgb_frames"):
        model(**epam_batch(frames=(3, 8)))
    with pytest.raises(ValueError, match=r"makes 12 maps of size \(5, 4\) for 9 RGB frames of size \(5, 4\)"):
        model(**epam_batch(frames=(3, 12)))
    with pytest.raises(ValueError, match="a quarter of the RGB frame's height and width"):
        attend(torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 5))
