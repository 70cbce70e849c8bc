"""One PCAN head on a whole batch, and as two ranks see it: run by test_pcan.py, one process a rank."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from models.pcan import PcanHead
from tests.models.small import SMALL_PCAN

CLIPS, WIDTHS, FRAMES = 16, (24, 16), {"rgb": 2, "pose": 3}


def results(first: int, last: int) -> dict[str, Tensor]:
    """Losses, gradients and prototypes after two steps on clips [first, last) of the one batch, float64."""
    torch.manual_seed(0)
    head = PcanHead(SMALL_PCAN, WIDTHS).double()
    draw = torch.Generator().manual_seed(1)
    label = torch.randint(0, 11, (CLIPS,), generator=draw)
    coarse = torch.tensor(SMALL_PCAN.pcan.coarse_map)[label]
    gain = {s: head.get_parameter(f"fc_{s}.weight")[label] for s in FRAMES}  # so that some are right
    found = {}
    for step in range(2):
        leaves = {}
        for stream, width in zip(FRAMES, WIDTHS, strict=True):
            noise = torch.randn(CLIPS, FRAMES[stream], width, 2, 2, generator=draw, dtype=torch.float64)
            x = 0.02 * noise + 3 * gain[stream].detach()[:, None, :, None, None]
            leaves[stream] = x[first:last].clone().requires_grad_()
        features = {s: x.flatten(0, 1).contiguous(memory_format=torch.channels_last) for s, x in leaves.items()}
        output = head(features, FRAMES, label[first:last], coarse[first:last])
        sum(output.losses.values()).backward()
        found |= {f"{name}.{step}": loss.detach() for name, loss in output.losses.items()}
        found |= {f"feature_{s}.{step}": x.grad for s, x in leaves.items()}
    found |= {name: p.grad for name, p in head.named_parameters()}
    return found | {name: b for name, b in head.named_buffers() if "prototypes" in name}


def run_rank(rank: int, folder: str) -> None:
    """Rank `rank` of two on its half of the batch; saves its results."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    half = CLIPS // 2
    torch.save(results(rank * half, (rank + 1) * half), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
