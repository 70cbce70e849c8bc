"""Computes weights and inputs of the fixtures from the names of tensors, and compares tensors.

The formulas are in fixtures/README.md, "Weight fill".
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models.weights import published as layout
from models.weights.renaming import Rules


def det_u01(name: str, count: int) -> np.ndarray:
    """Return `count` float64 numbers in [0, 1), which SplitMix64 generates from a hash of the name."""
    seed = np.frombuffer(hashlib.sha256(name.encode()).digest()[:8], "<u8")[0]
    with np.errstate(over="ignore"):
        z = seed + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def det_tensor(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return the weight published under `name`, in float32. The counter of a batch norm is an int64 zero."""
    if name.endswith("num_batches_tracked"):
        return torch.zeros((), dtype=torch.int64)
    u = det_u01(name, int(np.prod(shape))).reshape(shape)
    if name.endswith("running_var"):
        values = 0.5 + u
    elif name.endswith(("running_mean", "bias")):
        values = 0.2 * u - 0.1
    elif len(shape) == 1:
        values = (0.5 + 0.5 * u) * (0.3 if name.endswith("conv3.bn.weight") else 1)
    else:
        values = (2 * u - 1) * np.sqrt(3) * np.sqrt(2 / np.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


def det_input(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return the input called `name`, in float32."""
    u = det_u01("input." + name, int(np.prod(shape))).reshape(shape)
    return torch.from_numpy((u**8 if "heatmap" in name else 2 * u - 1).astype(np.float32))


def fill(model: nn.Module, rules: Rules, prefix: str = "") -> None:
    """Fill a network with published weights. `rules` translate `prefix` + our name into the published name."""
    own = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    names, left = layout.write(own, rules)
    filled, _ = layout.read({name: det_tensor(name, tuple(t.shape)) for name, t in names.items()}, rules)
    for name in left:  # published files have no names for these prototypes, so we choose similar names
        published = name.replace("contrast_", "fr_coarse_").replace("_coarse.prototypes", ".spatio_cl_net.avg_f")
        filled[name] = det_tensor(published, tuple(own[name].shape[::-1])).T
    model.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in filled.items()})


def norms(model: nn.Module, rules: Rules, prefix: str = "") -> dict[str, float]:
    """Return the 2-norm of each parameter's gradient, by the published name of the parameter."""
    gradients = {prefix + name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: gradient.norm().item() for name, gradient in layout.write(gradients, rules)[0].items()}


def published_keys(model: nn.Module, rules: Rules) -> list[list]:
    """Return [key, shape] of every tensor that the published network saves."""
    return sorted([name, list(t.shape)] for name, t in layout.write(model.state_dict(), rules)[0].items())


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


def load_json(path: Path) -> dict:
    return json.loads(path.read_text())


def folded(clip: Tensor) -> Tensor:
    """Convert the published [N, C, T, H, W] to our [N*T, C, H, W] channels_last."""
    return clip.permute(0, 2, 3, 4, 1).flatten(0, 1).contiguous().permute(0, 3, 1, 2)


def clips(name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a published input [N, C, T, H, W] as images [N, T, H, W, 3] or heatmaps [N, T, V, H, W]."""
    last = det_input(name, shape).to(dtype).permute(0, 2, 3, 4, 1).contiguous()
    return last.permute(0, 1, 4, 2, 3) if "heatmap" in name else last


def unfolded(x: Tensor, num_frames: int) -> Tensor:
    """Convert our [N*T, C, H, W] to the published [N, C, T, H, W]."""
    return x.unflatten(0, (-1, num_frames)).transpose(1, 2)


def assert_close(ours: Tensor, published: np.ndarray | Tensor, tolerance: float) -> None:
    """Assert that the largest difference, divided by the largest published value, is below `tolerance`."""
    published = torch.as_tensor(published, dtype=torch.float64)
    assert ours.shape == published.shape
    error = (ours.detach().double() - published).abs().max() / (published.abs().max() or 1)
    assert error < tolerance, f"relative difference {error:.2e}, allowed {tolerance:.0e}"


def sample(tensor: Tensor, count: int) -> Tensor:
    """Return at most `count` of the n values of a tensor.

    If n > count, the values are at the flat positions floor(j * n / count) in C order.
    """
    flat = tensor.reshape(-1)
    if flat.numel() <= count:
        return flat
    return flat[torch.arange(count) * flat.numel() // count]
