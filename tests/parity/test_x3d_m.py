"""mmaction2's X3D-M of Kinetics (x3d_m*): every published key has its place, both ways and in the shift net."""

import torch

from models.weights import x3d_m
from models.weights.layouts import read_weights
from tests.parity.published import det_tensor


def test_published_keys_are_read_and_written_back(facts, tmp_path):
    published = {key: det_tensor(key, tuple(shape)) for key, shape, _ in facts("x3d_m_state_dict.json")}
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
