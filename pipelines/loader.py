"""Loader: turns plans of clips into batches. It reads and decodes ahead of time, and draws heatmaps on the device.

The loader has no worker processes and keeps no state between batches, so an epoch can start at any batch.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace

import numpy as np
import nvtx
import torch

from kernels.compiler import why_kernel_failed
from kernels.heatmap import KernelError, render_heatmaps
from kernels.program import UserError
from pipelines.annotations.table import ClipTable
from pipelines.augment import augment_joints, change_frames, compiled_change, frame_changes
from pipelines.backends import Backends
from pipelines.background import faded, near_people
from pipelines.batch import Batch
from pipelines.config import ClipConfig
from pipelines.frame_source import Decoding, FrameSource
from pipelines.plan import CROP_SHARE, ClipPlan, batch_rows, epoch_order, plan_eval, plan_train, sampled_joints
from pipelines.read_ahead import reader_threads


def decode_threads(cores: int) -> int:
    """The default number of decoder threads, for a process that may use this many cores."""
    return max(1, min(8, cores - 1))


@dataclass
class Loader:
    """Batches of one split for one rank.

    rows: the rows of the table that belong to the split, the same array on every rank.
    streams: what the network reads. Heatmaps are drawn only if "pose" is among these. If "rgb" is not among these,
        `frames` is a NoFrames.
    batch_size: number of clips in a batch, summed over all ranks.

    Training shuffles the rows anew for each epoch, and fills up the last batch with the epoch's first clips. Evaluation
    keeps the order of `rows`, and fills up the last batch with copies of the last clip, for which `Batch.valid` is
    False.
    """

    table: ClipTable
    frames: FrameSource
    rows: np.ndarray
    config: ClipConfig
    coarse_map: tuple[int, ...]
    train: bool
    batch_size: int
    device: torch.device
    dtype: torch.dtype = torch.float32  # type of the heatmaps
    streams: tuple[str, ...] = ("rgb", "pose")
    rank: int = 0
    world_size: int = 1
    seed: int = 0
    balance: float = 0.0  # how much training balances the classes (see epoch_order)
    sample: int = 0  # evaluation uses sample number `sample` of the `num_samples` test samples of each clip
    num_samples: int = 1
    crop: int | None = None  # in evaluation, the number of a crop in THREE_CROPS; None: the whole box
    mirrored: bool = False  # whether evaluation mirrors each clip
    prefetch: int = 2
    threads: int = field(default_factory=lambda: decode_threads(len(os.sched_getaffinity(0))))
    say: Callable[[str], None] = print
    backends: Backends = None  # pyright: ignore[reportAssignmentType]  # by default the fastest for the device
    _epoch_rows: tuple[int, np.ndarray] | None = field(default=None, init=False)  # (epoch, rows in this epoch's order)

    def __post_init__(self) -> None:
        if self.batch_size % self.world_size:
            raise UserError(
                f"the global batch of {self.batch_size} clips cannot be divided evenly among {self.world_size} ranks; "
                f"set optim.batch_size to a multiple of {self.world_size}"
            )
        self.backends = self.backends or Backends.fastest(self.device, self.say)
        self.coarse = torch.tensor(self.coarse_map, device=self.device)
        self.partner = torch.from_numpy(self.config.skeleton.partner()).to(self.device)

    @property
    def num_batches(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    @property
    def sizes(self) -> tuple[int, int]:
        """Side of the RGB frames and side of the heatmaps in pixels.

        With `crop`, the side of each crop box is CROP_SHARE of the usual box's side. Both results shrink by the same
        factor, so that people appear as large as without `crop`.
        """
        rgb, heatmap = self.config.sizes(self.train)
        return (rgb, heatmap) if self.crop is None else (round(rgb * CROP_SHARE), round(heatmap * CROP_SHARE))

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, starting with batch number `first`."""
        planned: dict[int, tuple[ClipPlan, np.ndarray | None]] = {}  # plan and joints of steps that are yet to come

        def next_plan(step: int) -> ClipPlan:
            if first + step >= self.num_batches:
                raise StopIteration
            plan = self.plan(epoch, first + step)
            planned[step] = plan, self.joints(plan, epoch) if "pose" in self.streams else None
            return plan

        with reader_threads() as readers:
            decoder = self.frames.decode(next_plan, self.decoding(readers))
            for step in range(self.num_batches - first):
                rgb = decoder.next()
                yield self.batch(*planned.pop(step), epoch, first + step, rgb)

    def decoding(self, readers: Executor) -> Decoding:
        """The options with which the decoder of an epoch is created."""
        return Decoding(
            num_clips=self.batch_size // self.world_size,
            num_frames=self.config.rgb_frames,
            size=self.sizes[0],
            device=self.device,
            threads=self.threads,
            prefetch=self.prefetch,
            readers=readers,
            backends=self.backends,
            say=self.say,
        )

    def plan(self, epoch: int, step: int) -> ClipPlan:
        """Plan this rank's clips of batch number `step`."""
        if self.train:
            rows = batch_rows(self._order(epoch), step, self.batch_size, self.rank, self.world_size)
            return plan_train(self.table, rows, self.config, self.seed, epoch)
        positions = np.minimum(self._positions(step), len(self.rows) - 1)
        options = {"crop": self.crop, "flip": self.mirrored}
        return plan_eval(self.table, self.rows[positions], self.config, self.sample, self.num_samples, **options)

    def joints(self, plan: ClipPlan, epoch: int) -> np.ndarray:
        """The joints of a plan (`sampled_joints`), which training changes at random (`augment_joints`)."""
        joints = sampled_joints(self.table, plan)
        return augment_joints(joints, plan, self.config, self.seed, epoch) if self.train else joints

    def clips_by_class(self) -> torch.Tensor:
        """Number of clips of each of the K classes in this split: [K] int64."""
        return torch.from_numpy(np.bincount(self.table.label[self.rows], minlength=len(self.coarse_map)))

    def _order(self, epoch: int) -> np.ndarray:
        epoch_rows = self._epoch_rows  # a local variable, because threads of another epoch may replace the attribute
        if epoch_rows is None or epoch_rows[0] != epoch:
            classes = self.table.label[self.rows]
            epoch_rows = epoch, epoch_order(self.rows, self.seed, epoch, classes, self.balance)
            self._epoch_rows = epoch_rows
        return epoch_rows[1]

    def _positions(self, step: int) -> np.ndarray:
        return np.arange(step * self.batch_size + self.rank, (step + 1) * self.batch_size, self.world_size)

    def batch(
        self, plan: ClipPlan, joints: np.ndarray | None, epoch: int, step: int, rgb: torch.Tensor | None
    ) -> Batch:
        """Build batch number `step` of an epoch.

        joints: what `joints` returned for the plan, or None if the network reads no skeletons.
        rgb: the decoded frames, [N*T, size, size, 3] uint8, or None if the network reads no frames.
        """
        if rgb is not None:
            rgb = rgb.view(len(plan.row), self.config.rgb_frames, *rgb.shape[1:])
            rgb = self._changed(rgb, plan, epoch) if self.train else rgb
            rgb = self._faded(rgb, plan) if self.config.fade_background else rgb
        label = self._to_device(self.table.label[plan.row].astype(np.int64))
        return Batch(
            rgb=rgb,
            heatmap=None if joints is None else self._drawn(plan, joints),
            label=label,
            coarse_label=self.coarse[label],
            index=self._to_device(plan.row.astype(np.int64)),
            valid=self._to_device(self._positions(step) < len(self.rows) if not self.train else plan.row >= 0),
        )

    def _changed(self, rgb: torch.Tensor, plan: ClipPlan, epoch: int) -> torch.Tensor:
        """The frames [N, T, H, W, 3] with the random changes of training.

        If compiling the changes fails, plain torch makes these and all later changes.
        """
        changes = frame_changes(plan, self.config, rgb.shape[2], self.seed, epoch)
        if changes is None:
            return rgb
        numbers = self._to_device(changes)
        if self.backends.compiles:
            try:
                return compiled_change()(rgb, numbers)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # Inductor, Triton and the C compiler raise many kinds of exceptions
                self.backends.change_frames_uncompiled(why_kernel_failed(error))
        return change_frames(rgb, numbers)

    def _faded(self, rgb: torch.Tensor, plan: ClipPlan) -> torch.Tensor:
        """The frames of a plan, [N, T, size, size, 3] uint8, with a faded background."""
        joints = sampled_joints(self.table, replace(plan, pose_frames=plan.rgb_frames))
        box, flip = self._to_device(plan.box.astype(np.float32)), self._to_device(plan.flip)
        near = near_people(self._to_device(joints), box, flip, self.config.skeleton.limbs)
        return faded(rgb, near, self.config.fade_background)

    def _drawn(self, plan: ClipPlan, joints: np.ndarray) -> torch.Tensor:
        """The heatmaps of a plan. If the kernel fails, plain torch draws these and all later heatmaps."""
        with nvtx.annotate("heatmap"):
            try:
                return self.heatmaps(plan, joints, by_kernel=self.backends.renderer == "kernel")
            except KernelError as error:
                self.backends.draw_by_reference(str(error))
                return self.heatmaps(plan, joints, by_kernel=False)

    def heatmaps(self, plan: ClipPlan, joints: np.ndarray, *, by_kernel: bool) -> torch.Tensor:
        """Draw the joints of a plan, by the Triton kernel or by plain torch: [N, T', C, H', W']. Raises KernelError."""
        size = self.sizes[1]
        scale = size / (plan.box[:, 2:] - plan.box[:, :2])
        shift = -plan.box[:, :2] * scale
        # [N, 4]: scale and shift of x, then of y
        placement = np.stack([scale, shift], axis=2).reshape(-1, 4).astype(np.float32)
        return render_heatmaps(
            self._to_device(joints),
            (size, size),
            self.config.sigma,
            placement=self._to_device(placement),
            flip=self._to_device(plan.flip),
            partner=self.partner,
            limbs=self.config.drawn_limbs(),
            joint_channels=self.config.joints,
            dtype=self.dtype,
            by_kernel=by_kernel,
        )

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()  # a copy from pageable memory would wait until the GPU's queue is empty
        return tensor.to(self.device, non_blocking=True)
