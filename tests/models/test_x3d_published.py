"""Temporal-shift X3D against outputs of the published code (fixtures x3dts_*)."""

import numpy as np
import pytest
import torch
from torch import nn

from models.config import X3D_POSE, X3D_RGB
from models.layers import shift_frames
from models.x3d_shift import X3DTemporalShift
from tests.parity.published import assert_close, det_input, fill, folded, load_json, unfolded

STREAMS = {"rgb": (X3D_RGB, 3, "imgs.tsm", 16), "pose": (X3D_POSE, 17, "heatmap_imgs.tsm", 48)}


def stream_net(fixtures, stream) -> nn.Module:
    config, channels, _, _ = STREAMS[stream]
    net = X3DTemporalShift(config, channels)
    fill(net, load_json(fixtures / f"x3dts_{stream}_state_dict.json"), f"{stream}_backbone.")
    return net


@pytest.mark.parametrize("stream", STREAMS)
def test_parameters_are_counted_as_published(stream):
    config, channels, _, _ = STREAMS[stream]
    net = X3DTemporalShift(config, channels)
    count = sum(p.numel() for p in net.parameters())
    assert (count, len(net.state_dict())) == {"rgb": (1_980_030, 564), "pose": (519_580, 496)}[stream]


@pytest.mark.parametrize("stream", STREAMS)
def test_features_equal_the_published(fixtures, stream):
    path = fixtures / f"x3dts_{stream}_feat.npz"
    if not path.exists():
        pytest.skip(f"no {path.name}")
    _, _, name, frames = STREAMS[stream]
    published = np.load(path)
    side = 64 if stream == "rgb" else 16
    clip = det_input(name, (1, STREAMS[stream][1], frames, side, side))
    assert_close(clip.reshape(-1)[:64], published["input_head"], 1e-7)
    net = stream_net(fixtures, stream).eval()
    with torch.no_grad():
        feature = net(folded(clip), frames)
        assert_close(unfolded(feature, frames), published["feat"], 1e-5)
        wide = net.double()(folded(clip).double(), frames)
    assert_close(unfolded(wide, frames).mean((2, 3, 4)), published["gap_f64"].reshape(1, -1), 1e-10)


def test_features_of_odd_sizes_equal_the_published(fixtures):
    path = fixtures / "x3dts_odd_size.npz"
    if not path.exists():
        pytest.skip(f"no {path.name}")
    published = np.load(path)
    shapes = {"rgb": (1, 3, 5, 50, 37), "pose": (1, 17, 7, 13, 18)}
    outputs = {key: value for key, value in published.items() if value.ndim == 5}
    for stream, shape in shapes.items():
        net = stream_net(fixtures, stream).eval()
        with torch.no_grad():
            feature = unfolded(net(folded(det_input(STREAMS[stream][2] + ".odd", shape)), shape[2]), shape[2])
        match = [value for value in outputs.values() if value.shape == tuple(feature.shape)]
        assert len(match) == 1
        assert_close(feature, match[0], 1e-5)


@pytest.mark.parametrize("loss_name", ["sumsq", "proj"])
@pytest.mark.parametrize("stream", STREAMS)
def test_gradients_equal_the_published_in_float64(fixtures, stream, loss_name):
    path = fixtures / f"x3dts_{stream}_train.json"
    if not path.exists():
        pytest.skip(f"no {path.name}")
    published = load_json(path)
    name, shape = published["input"]
    expected = published["float64"][loss_name]
    net = stream_net(fixtures, stream).double()
    clip = folded(det_input(name, tuple(shape))).double().requires_grad_()
    out = unfolded(net(clip, shape[2]), shape[2])
    projection = det_input(f"proj.{stream}", tuple(out.shape)).double() if loss_name == "proj" else out
    loss = (out * projection).sum()
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-8)
    norms = {name: p.grad.norm().item() for name, p in net.named_parameters()}
    norms["__input__"] = clip.grad.norm().item()
    assert norms == pytest.approx(expected["grad_norm"], rel=1e-6, abs=1e-8 * expected["total_grad_norm"])
    running = {name: b.norm().item() for name, b in net.named_buffers() if "running" in name}
    assert running == pytest.approx(published["float64"]["running_norm_after"], rel=1e-8)


@pytest.mark.parametrize(("stream", "divisor"), [("rgb", 8), ("pose", 4)])
def test_shift_equals_the_published(fixtures, stream, divisor):
    path = fixtures / "x3dts_shift.npz"
    if not path.exists():
        pytest.skip(f"no {path.name}")
    shape = (2, 24, 5, 1, 2)
    shifted = shift_frames(folded(det_input("tshift", shape)), 5, 24 // divisor)
    assert torch.equal(unfolded(shifted, 5), torch.from_numpy(np.load(path)[stream]))
