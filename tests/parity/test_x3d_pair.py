"""Compares temporal-shift X3D with outputs of the published code (x3dts_*)."""

import numpy as np
import pytest
import torch

from models.config import X3DPairConfig
from models.layers import shift_frames
from models.networks import build_model
from models.weights import published as layout
from tests.parity.published import (
    assert_close,
    det_input,
    fill,
    folded,
    load_json,
    norms,
    published_keys,
    unfolded,
)

STREAMS = ("rgb", "pose")


@pytest.fixture(scope="module")
def pair(facts):
    """Return the two-stream network with the published weights, in float32.

    `stream_net` copies the weights of one stream.
    """
    joints = facts("x3dts_info.json")["pose"]["input"][1][1]
    model = build_model(X3DPairConfig(num_classes=60, num_coarse=0, pose_channels=joints))
    fill(model, layout.EPAM)
    return model


@pytest.fixture
def stream_net(pair):
    def make(stream: str) -> torch.nn.Module:
        torch.manual_seed(0)
        net = build_model(
            X3DPairConfig(num_classes=60, num_coarse=0, pose_channels=pair.pose_backbone.conv1_s.conv.in_channels)
        )
        net.load_state_dict(pair.state_dict())
        return net.get_submodule(f"{stream}_backbone")

    return make


@pytest.mark.parametrize("stream", STREAMS)
def test_keys_shapes_and_counts_equal_the_published(facts, pair, stream):
    keys = [[name, shape] for name, shape in published_keys(pair, layout.EPAM) if name.startswith(f"{stream}_back")]
    published = [key[:2] for key in facts(f"x3dts_{stream}_state_dict.json") if key[0].startswith(f"{stream}_back")]
    assert keys == sorted(published)
    net = pair.get_submodule(f"{stream}_backbone")
    count = sum(p.numel() for p in net.parameters())
    assert (count, len(net.state_dict())) == {"rgb": (1_980_030, 564), "pose": (519_580, 496)}[stream]


@pytest.mark.parametrize("stream", STREAMS)
def test_features_equal_the_published(cases, facts, stream_net, stream):
    name, shape = facts("x3dts_info.json")[stream]["input"]
    for path in cases(f"x3dts_{stream}_feat.npz"):
        published = np.load(path)
        clip = det_input(name, tuple(shape))
        assert_close(clip.reshape(-1)[:64], published["input_head"], 1e-7)
        net = stream_net(stream).eval()
        with torch.no_grad():
            assert_close(unfolded(net(folded(clip), shape[2]), shape[2]), published["feat"], 1e-5)
            wide = net.double()(folded(clip).double(), shape[2])
        assert_close(unfolded(wide, shape[2]).mean((2, 3, 4)), published["gap_f64"].reshape(1, -1), 1e-10)


@pytest.mark.parametrize("stream", STREAMS)
def test_features_of_odd_sizes_equal_the_published(cases, facts, stream_net, stream):
    inputs, outputs = facts("x3dts_info.json")["odd"][stream]
    name = facts("x3dts_info.json")[stream]["input"][0]
    for path in cases("x3dts_odd_size.npz"):
        match = [array for array in np.load(path).values() if list(array.shape) == outputs]
        assert match, path
        with torch.no_grad():
            feature = stream_net(stream).eval()(folded(det_input(f"{name}.odd", tuple(inputs))), inputs[2])
        for published in match:  # one published output is in float32, the other in float64
            assert_close(unfolded(feature, inputs[2]), published, 1e-5)


@pytest.mark.parametrize("loss_name", ["sumsq", "proj"])
@pytest.mark.parametrize("stream", STREAMS)
def test_gradients_equal_the_published_in_float64(cases, stream_net, stream, loss_name):
    for path in cases(f"x3dts_{stream}_train.json"):
        published = load_json(path)
        name, shape = published["input"]
        expected = published["float64"][loss_name]
        net = stream_net(stream).double().train()
        clip = folded(det_input(name, tuple(shape))).double().requires_grad_()
        out = unfolded(net(clip, shape[2]), shape[2])
        projection = det_input(f"proj.{stream}", tuple(out.shape)).double() if loss_name == "proj" else out
        loss = (out * projection).sum()
        loss.backward()
        assert loss.item() == pytest.approx(expected["loss"], rel=1e-8)
        prefix = f"{stream}_backbone."
        got = {key.removeprefix(prefix): norm for key, norm in norms(net, layout.EPAM, prefix).items()}
        got["__input__"] = clip.grad.norm().item()
        assert got == pytest.approx(expected["grad_norm"], rel=1e-6, abs=1e-8 * expected["total_grad_norm"])
        running = {name: b.norm().item() for name, b in net.named_buffers() if "running" in name}
        assert running == pytest.approx(published["float64"]["running_norm_after"], rel=1e-8)


def test_loss_and_gradient_norm_of_the_pose_stream_equal_the_published(facts, stream_net):
    """Compares the loss and the norm of all gradients together, both of which are in x3dts_info.json."""
    about = facts("x3dts_info.json")["pose"]
    name, (_, *shape) = about["input"]
    net = stream_net("pose").double().train()
    out = unfolded(net(folded(det_input(f"{name}.b2", (2, *shape))).double(), shape[1]), shape[1])
    loss = (out * det_input("proj.pose", tuple(out.shape))).sum()
    loss.backward()
    total = torch.stack([p.grad.norm() for p in net.parameters()]).norm().item()
    assert [loss.item(), total] == pytest.approx(about["train"]["float64"]["proj"], rel=1e-8)


@pytest.mark.parametrize(("stream", "divisor"), [("rgb", 8), ("pose", 4)])
def test_shift_equals_the_published(cases, stream, divisor):
    for path in cases("x3dts_shift.npz"):
        published = np.load(path)[stream]
        num_frames, channels = published.shape[2], published.shape[1]
        shifted = shift_frames(folded(det_input("tshift", published.shape)), num_frames, channels // divisor)
        assert torch.equal(unfolded(shifted, num_frames), torch.from_numpy(published))
