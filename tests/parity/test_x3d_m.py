"""MMAction2's X3D-M for Kinetics (x3d_m*): all published keys are read, and a plain network computes the same scores.

Duet has no X3D-M network, so the plain network in this file shows that each weight gets the right name.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.weights import x3d_m
from models.weights.layouts import read_weights
from tests.parity.published import assert_close, det_input, det_tensor

BLOCKS = (3, 5, 11, 7)


@pytest.fixture(scope="module")
def published(facts) -> dict[str, Tensor]:
    return {key: det_tensor(key, tuple(shape)) for key, shape, _ in facts("x3d_m_state_dict.json")}


def test_published_keys_are_read_and_written_back(published, tmp_path):
    torch.save({"state_dict": published}, tmp_path / "x3d_m.pth")
    weights = read_weights(tmp_path / "x3d_m.pth")
    assert weights.layout.name == "mmaction2"
    assert weights.compare().complaints() == []
    shift = weights.native()
    assert sum(t.numel() for name, t in shift.items() if "running" not in name and "num_b" not in name) == 1_980_030
    for rules in (x3d_m.MMACTION2, x3d_m.SLOWFAST):
        named, left = x3d_m.write(weights.state, rules)
        back, unknown = x3d_m.read(named, rules)
        assert left == unknown == []
        assert back.keys() == published.keys()
        assert all(torch.equal(back[name], tensor) for name, tensor in published.items())


class PlainX3DM:
    """X3D-M in evaluation, with 5-D layers. Weights are looked up by our names (docs/sources.md, "Weight files")."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def conv(self, x: Tensor, name: str, stride: int = 1, *, depthwise: bool = False) -> Tensor:
        weight = self.state[f"{name}.conv.weight"]
        padding = [side // 2 for side in weight.shape[2:]]
        return F.conv3d(x, weight, None, (1, stride, stride), padding, groups=len(weight) if depthwise else 1)

    def norm(self, x: Tensor, name: str) -> Tensor:
        running, learnt = ("running_mean", "running_var"), ("weight", "bias")
        return F.batch_norm(x, *(self.state[f"{name}.bn.{part}"] for part in running + learnt))

    def squeeze_excite(self, x: Tensor, name: str) -> Tensor:
        gate = x.mean((2, 3, 4), keepdim=True)
        for layer, act in (("fc1", torch.relu), ("fc2", torch.sigmoid)):
            gate = act(F.conv3d(gate, *(self.state[f"{name}.{layer}.{part}"] for part in ("weight", "bias"))))
        return x * gate

    def block(self, x: Tensor, name: str, index: int) -> Tensor:
        stride = 1 if index else 2
        y = self.norm(self.conv(x, f"{name}.conv1"), f"{name}.conv1").relu()
        y = self.norm(self.conv(y, f"{name}.conv2", stride, depthwise=True), f"{name}.conv2")
        y = F.silu(y if index % 2 else self.squeeze_excite(y, f"{name}.se_module"))
        y = self.norm(self.conv(y, f"{name}.conv3"), f"{name}.conv3")
        shortcut = f"{name}.downsample"
        return (y + (x if index else self.norm(self.conv(x, shortcut, stride), shortcut))).relu()

    def feature(self, x: Tensor) -> Tensor:
        x = self.conv(self.conv(x, "backbone.conv1_s", 2), "backbone.conv1_t", depthwise=True)
        x = self.norm(x, "backbone.conv1_t").relu()
        for stage, count in enumerate(BLOCKS, start=1):
            for index in range(count):
                x = self.block(x, f"backbone.layer{stage}.{index}", index)
        return self.norm(self.conv(x, "backbone.conv5"), "backbone.conv5").relu()

    def scores(self, feature: Tensor) -> Tensor:
        hidden = F.linear(feature.mean((2, 3, 4)), self.state["cls_head.fc1.weight"]).relu()
        return F.linear(hidden, self.state["cls_head.fc2.weight"], self.state["cls_head.fc2.bias"])


def test_a_plain_net_in_our_names_computes_the_published(cases, published):
    state, unknown = x3d_m.read(x3d_m.write(published, x3d_m.SLOWFAST)[0], x3d_m.SLOWFAST)
    assert unknown == []
    for path in cases("x3d_m.npz"):
        arrays = np.load(path)
        clip = det_input("imgs.x3d", (1, 3, arrays["feat"].shape[2], 64, 64))
        assert_close(clip.reshape(-1)[:64], arrays["imgs_head"], 1e-7)
        net = PlainX3DM(state)
        feature = net.feature(clip)
        assert_close(feature, arrays["feat"], 1e-5)
        assert_close(net.scores(feature), arrays["score"], 1e-5)
        wide = PlainX3DM({name: tensor.double() for name, tensor in state.items()})
        assert_close(wide.scores(wide.feature(clip.double())), arrays["score_f64"], 1e-12)
