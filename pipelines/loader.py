"""From plans to batches: the planned frames are decoded ahead of time, the heatmaps drawn on the device.

No worker processes and no state: an epoch can be entered at any batch.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import nvtx
import torch

from kernels.heatmap import render_heatmaps
from kernels.program import UserError
from pipelines.annotations.table import ClipTable
from pipelines.batch import Batch
from pipelines.config import ClipConfig
from pipelines.frame_source import Decoding, FrameSource
from pipelines.plan import ClipPlan, batch_rows, epoch_order, plan_eval, plan_train, sampled_joints


@dataclass
class Loader:
    """Batches of one split on one rank.

    `rows` are the table's rows to use, the same on every rank; `batch_size` is global. Training batches come in the
    epoch's order, the last one filled up from its start; evaluation batches come in table order, the last one padded
    with its last clip and marked by `Batch.valid`.
    """

    table: ClipTable
    frames: FrameSource
    rows: np.ndarray
    config: ClipConfig
    coarse_map: tuple[int, ...]
    train: bool
    batch_size: int
    device: torch.device
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    balance: float = 0.0  # see epoch_order
    clip: int = 0  # in evaluation: sample `clip` of `num_clips`
    num_clips: int = 1
    prefetch: int = 2
    threads: int = field(default_factory=lambda: max(1, min(8, len(os.sched_getaffinity(0)) - 1)))
    say: Callable[[str], None] = print
    _ordered: tuple[int, np.ndarray] | None = field(default=None, init=False)  # the last epoch and its rows in order

    def __post_init__(self) -> None:
        if self.batch_size % self.world_size:
            raise UserError(
                f"the global batch of {self.batch_size} clips does not divide over {self.world_size} ranks; "
                f"set optim.batch_size to a multiple of {self.world_size}"
            )
        self.coarse = torch.tensor(self.coarse_map, device=self.device)
        self.partner = torch.from_numpy(self.config.skeleton.partner()).to(self.device)

    @property
    def num_batches(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from batch `first` on."""
        plans: dict[int, ClipPlan] = {}  # the source runs ahead of the batches; a plan waits here in between

        def ahead(step: int) -> ClipPlan:
            if first + step >= self.num_batches:
                raise StopIteration
            plans[step] = self.plan(epoch, first + step)
            return plans[step]

        decoder = self.frames.decode(ahead, self.decoding())
        for step in range(self.num_batches - first):
            rgb = decoder.next()
            yield self.batch(plans.pop(step), first + step, rgb)

    def decoding(self) -> Decoding:
        """What the decoder of an epoch is made with."""
        return Decoding(
            num_clips=self.batch_size // self.world_size,
            num_frames=self.config.rgb_frames,
            size=self.config.sizes(self.train)[0],
            device=self.device,
            threads=self.threads,
            prefetch=self.prefetch,
            say=self.say,
        )

    def plan(self, epoch: int, step: int) -> ClipPlan:
        """This rank's plans for batch `step`."""
        if self.train:
            rows = batch_rows(self._order(epoch), step, self.batch_size, self.rank, self.world_size)
            return plan_train(self.table, rows, self.config, self.seed, epoch)
        places = np.minimum(self._places(step), len(self.rows) - 1)
        return plan_eval(self.table, self.rows[places], self.config, self.clip, self.num_clips)

    def clips_by_class(self) -> torch.Tensor:
        """[K] int64 number of this split's clips of each class."""
        return torch.from_numpy(np.bincount(self.table.label[self.rows], minlength=len(self.coarse_map)))

    def _order(self, epoch: int) -> np.ndarray:
        if self._ordered is None or self._ordered[0] != epoch:
            classes = self.table.label[self.rows]
            self._ordered = epoch, epoch_order(self.rows, self.seed, epoch, classes, self.balance)
        return self._ordered[1]

    def _places(self, step: int) -> np.ndarray:
        return np.arange(step * self.batch_size + self.rank, (step + 1) * self.batch_size, self.world_size)

    def batch(self, plan: ClipPlan, step: int, rgb: torch.Tensor) -> Batch:
        """Batch `step` from its plan and its decoded frames [N*T, size, size, 3]."""
        size = self.config.sizes(self.train)[1]
        scale = size / (plan.box[:, 2:] - plan.box[:, :2])
        shift = -plan.box[:, :2] * scale
        placement = np.stack([scale, shift], axis=2).reshape(-1, 4).astype(np.float32)  # ax, bx, ay, by
        on_gpu = self.device.type == "cuda"
        with nvtx.annotate("heatmap"):
            heatmap = render_heatmaps(
                self._to_device(sampled_joints(self.table, plan)),
                (size, size),
                self.config.sigma,
                placement=self._to_device(placement),
                flip=self._to_device(plan.flip),
                partner=self.partner,
                limbs=self.config.skeleton.limbs if self.config.limbs else (),
                dtype=torch.bfloat16 if on_gpu else torch.float32,
            )
        label = self._to_device(self.table.label[plan.row].astype(np.int64))
        return Batch(
            rgb=rgb.view(len(plan.row), self.config.rgb_frames, *rgb.shape[1:]),
            heatmap=heatmap,
            label=label,
            coarse_label=self.coarse[label],
            index=self._to_device(plan.row.astype(np.int64)),
            valid=self._to_device(self._places(step) < len(self.rows) if not self.train else plan.row >= 0),
        )

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()  # from pageable memory the copy would wait for all queued steps
        return tensor.to(self.device, non_blocking=True)
